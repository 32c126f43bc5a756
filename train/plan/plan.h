#pragma once

#include <string>
#include <vector>

#include "train/plan/dry_run.h"
#include "train/plan/replay.h"

namespace ringlet {

/// FLOPs of one step of the whole world, by the conventions of the field.
struct StepFlops {
  double model = 0;     // 6 N T + 12 L d per visible pair: backward twice the forward; the numerator of MFU
  double palm = 0;      // 6 N T + 12 L d T^2: every pair counted (arXiv:2204.02311)
  double executed = 0;  // what runs: attention backward 2.5 times its forward, and what is recomputed; of HFU
};

/// What a training run needs and does, from running its own step dry.
struct Plan {
  std::vector<DryStep> ranks;  // every rank, or some of each kind (large worlds)
  bool every_rank = true;
  StepFlops flops;
  int64_t tokens_per_step = 0;

  // With rates:
  std::vector<RankTime> times;  // of `timed_ranks`
  std::vector<int> timed_ranks;
  double step_seconds = 0;      // of the last rank

  const DryStep& fullest() const;
  int64_t most_sent_bytes() const;  // in a step, by the rank that sends most
  double bubble_percent() const;  // exposed waits over the step, mean of the timed ranks
};

/// Worlds of at most so many ranks are run dry rank by rank; of larger ones the first and the last rank, one in the
/// middle and one of each count of rows, and time is that of the busiest, its neighbours taken to be as busy.
inline constexpr int64_t kEveryRank = 64;

/// rates absent: memory and traffic only. cores: that ranks and their threads share; 0: each rank has a device of its own.
Plan make_plan(const DryRun& run, const Rates* rates = nullptr, int threads_per_rank = 1, int cores = 0);

/// Bytes of the fullest rank, from as few dry runs as tell it.
int64_t peak_bytes(const DryRun& run);

/// The longest T, in multiples of 1,024, whose fullest rank needs at most `budget_bytes`, by dry runs; 0: not even
/// 1,024.
int64_t longest_context(const DryRun& run, double budget_bytes);

/// What one setting in place of the config's own would change.
struct Knob {
  std::string name;      // "memory.recompute = full"
  int64_t peak_bytes = 0;
  double executed_flops = 0;    // of the whole world
  int64_t sent_bytes = 0;       // by the rank that sends most
  int64_t longest_context = 0;  // 0: not asked for
};

/// plan: of the run. Where it is not of every rank, its fullest rank stands for all.
/// budget_bytes 0: longest contexts are not looked for.
std::vector<Knob> knobs_of(const DryRun& run, const Plan& plan, double budget_bytes);

/// The least tokens a rank must hold so that the message of a hop hides behind the attention of a hop, causal, each hop
/// half visible (zigzag): attention 2 (forward) or 5 (backward) * heads * head_dim * c^2 flops against 8 or 16 * kv_heads *
/// head_dim * c bytes.
struct HideThreshold {
  double forward_tokens = 0, backward_tokens = 0;
};
HideThreshold hide_threshold(const GptConfig& gpt, const Rates& rates, int64_t rows);

}  // namespace ringlet
