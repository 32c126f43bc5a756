#pragma once

#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "data/corpus.h"
#include "train/config.h"
#include "train/metrics.h"
#include "train/verify/reference_gpt.h"

namespace ringlet {

/// A text of one document of so many tokens, in a corpus that lies in `folder` as long as this lives: every window of that
/// length is the same and full. Throws Error when it cannot be written.
class MadeUpText {
 public:
  MadeUpText(const std::filesystem::path& folder, int64_t tokens, int64_t vocabulary);
  ~MadeUpText();
  MadeUpText(const MadeUpText&) = delete;
  MadeUpText& operator=(const MadeUpText&) = delete;
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

/// How long is trained.
struct StepCounts {
  int64_t warmup_steps = 1;
  int64_t least_steps = 3;    // measured; more where steps are short, up to 20 times as many,
  double least_seconds = 1;   // until they took so long
};

/// What the measured steps gave.
struct Measured {
  std::vector<double> step_ms, exposed_ms, bubble_percent, imbalance;  // by step
  std::vector<double> attention_ms, ring_wait_ms;  // of a step, by rank
  std::vector<int64_t> peak_bytes, sent_bytes;     // by rank
  Values gradient;  // of the first step, whole; empty where nobody asked for it
  bool stopped = false;
};

enum class KeepGradient : uint8_t { no, of_first_step };

/// Trains from fresh weights on the text, as `ringlet train` would, every rank in this process. `stop` is asked after each
/// step, may be absent, and ends it.
Measured train_steps(const Config& config, const GptConfig& gpt, const MadeUpText& text, StepCounts counts,
                     const std::function<bool()>& stop, KeepGradient keep);

}  // namespace ringlet
