#pragma once

#include <chrono>
#include <filesystem>
#include <string>
#include <vector>

#include "kernels/comm/rank_memory.h"
#include "tests/support/ring_case.h"
#include "train/stage_training.h"

namespace ringlet::test {

/// A folder of its own that goes with the object.
class TemporaryFolder {
 public:
  TemporaryFolder();
  ~TemporaryFolder();
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

/// Prepares texts, a document each, as a corpus. Returns its path. tokenizer: as in PrepareOptions.
std::string make_corpus_of(const TemporaryFolder& folder, const std::string& name,
                           const std::vector<std::string>& texts,
                           const std::string& tokenizer = "byte", int64_t vocabulary = 0);

/// A byte corpus of `documents` documents of varied length, some 20 kB in all: words that repeat. Returns its path.
std::string make_corpus(const TemporaryFolder& folder, int documents, const std::string& name = "corpus");

/// The config of a model that trains in milliseconds on that corpus.
Config tiny_training(const std::string& corpus, int64_t ranks, int64_t ring);

/// What a training leaves behind.
struct Trained {
  std::vector<MetricsRecord> records;  // of every step
  ValuesByName weights, first_moments, second_moments;  // f32, whatever the model computes in
  RunEnd end = RunEnd::finished;
  std::vector<std::string> said;  // lines for the user
  std::vector<double> losses() const;
  std::vector<double> gradient_norms() const;
};

struct TrainingOptions {
  RunFolder* folder = nullptr;             // absent: nothing is saved
  const Checkpoint* resume = nullptr;
  int64_t stop_after_step = -1;            // a stop is requested when this step has been reported
  std::chrono::milliseconds timeout{120'000};
  std::function<MakeBackend(int rank)> backend_of = [](int) { return MakeBackend(plain_backend); };
  RankMemory* memory = nullptr;            // what moves tensors between the ranks; absent: the host's
};

/// Trains as `ringlet train` does, on threads.
Trained train_case(const Config& config, const TrainingOptions& options = {});

/// Trains in the empty or absent folder `path` with `first` until a stop is asked for after `step`, which
/// saves; then resumes with `second` from the newest checkpoint, to its end. The options give the devices of
/// both parts.
Trained train_interrupted(const std::filesystem::path& path, const Config& first, const Config& second,
                          int64_t step, const TrainingOptions& on_first = {},
                          const TrainingOptions& on_second = {});

}  // namespace ringlet::test
