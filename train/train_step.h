#pragma once

#include <cmath>
#include <functional>
#include <span>
#include <vector>

#include "kernels/recycled_memory.h"
#include "train/evaluation.h"
#include "train/optimizer.h"

namespace ringlet {

/// How sums over the world become the numbers of a step. Arguments of TrainStep, so that a check can be shown to
/// catch wrong ones.
struct StepRules {
  /// By what every token's loss is multiplied, from the count of scored tokens of all ranks.
  std::function<double(int64_t scored_tokens)> loss_scale = [](int64_t scored_tokens) {
    return scored_tokens == 0 ? 0 : 1 / double(scored_tokens);
  };
  /// By what the summed gradient is multiplied, from its squared norm and the largest norm allowed (0: any).
  std::function<double(double squares, double clip_norm)> clip_factor = [](double squares,
                                                                           double clip_norm) {
    const double norm = std::sqrt(squares);
    return clip_norm > 0 && norm > clip_norm ? clip_norm / norm : 1.0;
  };
};

/// What one ring trains in a step.
struct StepWindows {
  int64_t count = 0;                   // of this ring; may be 0
  int64_t most = 0;                    // of the ring that has the most
  int64_t scored_tokens = 0;           // of all rings together
  std::function<const Batch*()> next;  // this rank's rows of the next window, until the next call
  int64_t tokens = 0;                  // of all rings, whether they are scored or not
};

/// One optimizer step of one rank: the gradient over its windows, the sum over the world, the update. Shared by
/// training and verification. Collective.
class TrainStep {
 public:
  /// What to do with the loss of each row of a window.
  using Losses = std::function<void(std::span<const float> losses, const Batch& batch)>;

  /// All references must outlive this.
  TrainStep(const ModelRank& rank, Parameters& parameters, ShardedAdamW& optimizer, MaskRule mask,
            int64_t sliding_window, StepRules rules = {});

  /// Forward and backward over the windows, on `device` (the rank's own, or one that watches it). Afterwards each
  /// rank holds its shards of the gradient of the mean loss, summed over the world. Returns the sum of squares of
  /// these shards. Waits for the device.
  double accumulate(const StepWindows& windows, Backend& device, const Losses& losses);

  /// One AdamW step from that gradient. gradient_squares: its squared norm, summed over the world, finite.
  /// settings.gradient_scale is set here.
  void update(double gradient_squares, double clip_norm, AdamW settings);

 private:
  const ModelRank& rank_;
  Parameters& parameters_;
  ShardedAdamW& optimizer_;
  MaskRule mask_;
  int64_t sliding_window_;
  StepRules rules_;
  // What a step needs on the host, kept for the next one.
  RecycledMemory memory_;
  Mask window_mask_;
  std::vector<float> losses_;
};

}  // namespace ringlet
