#pragma once

#include <optional>
#include <string>
#include <vector>

#include "train/devices.h"
#include "train/metrics.h"
#include "train/plan/plan.h"

namespace ringlet {

/// What was predicted of a run before it began, to stand beside what was measured when it ends.
class Prediction {
 public:
  /// Runs the config's step dry; with times where this machine is calibrated.
  /// process_bytes_before: what the process has grown to in stages before; its memory never
  /// shrinks. gpu_arena_bytes: of each rank, on a GPU, where it has one from the start; 0: not known.
  Prediction(const Config& config, const GptConfig& gpt, const Devices& devices,
             int64_t process_bytes_before = 0, int64_t gpu_arena_bytes = 0);
  /// A step was trained. One that is verified (run.verify) does more than was predicted, and does not count.
  void add(const MetricsRecord& record);
  /// Predicted beside measured, up to now: memory of each arena, messages, time, memory of the process or of the GPU. Empty
  /// before the second step. Called while the ranks hold their memory.
  std::string text() const;
  /// Memory of the process, with GPUs of the first of them; 0: not known.
  int64_t process_bytes() const { return process_bytes_; }

 private:
  const Config& config_;
  const Devices& devices_;
  std::optional<Rates> rates_;
  Plan plan_;
  int64_t process_bytes_ = 0;
  std::vector<double> step_ms_;
  MetricsRecord last_;
};

/// Bytes of a rank on the host whatever it holds: what its threads pack products into, and the part of a huge page that
/// its arena does not fill.
int64_t host_bytes_of_rank(int threads);

}  // namespace ringlet
