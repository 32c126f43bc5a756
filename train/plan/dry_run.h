#pragma once

#include <functional>
#include <memory>

#include "data/window_plan.h"
#include "model/parameters.h"
#include "train/config.h"
#include "train/plan/tape.h"
#include "train/train_step.h"

namespace ringlet {

/// One step of one rank, run dry: the trainer's own step, model, ring and optimizer on a device that computes nothing.
struct DryStep {
  int rank = 0;
  int64_t rows = 0;      // tokens of a window that it holds
  int64_t windows = 0;   // that its ring trains in a step
  int64_t peak_bytes = 0;
  std::vector<Arena::Region> regions;  // at the peak
  PeakMoment moment;
  Traffic traffic;       // sent in a step
  int64_t offloaded_bytes = 0;  // put away and fetched in a step, both counted
  double matmul_flops = 0, attention_flops = 0;  // executed in a step
};

/// The vocabulary of the config's corpus; that of bytes where there is none.
int64_t planned_vocabulary(const Config& config);

/// What a dry run is of. The config is resolved; its run.ranks and run.ring say of which world.
struct DryRun {
  const Config& config;
  GptConfig gpt;
  Mask mask{};  // of every window
  std::span<const Window> windows{};  // of one step, in the global order, with documents of their own; empty: see mask
};

/// Windows of a step: of the rank's own ring, and of the ring that has the most.
struct RehearsedWindows {
  int64_t own = 1, most = 1;
};

/// One step of one rank through the trainer's own parts; nothing is allocated before, nothing stays allocated after.
/// Collective.
/// initialise: gives the weights their values; absent: they are 0.
/// again: asked after each step, whether to go on with another one; absent: no.
void rehearse_step(const DryRun& run, RankContext context, Comm& world, const SequenceLayout& layout,
                   const StepWindows& windows, const std::function<void(Parameters&)>& initialise = {},
                   const std::function<bool()>& again = {});

/// The same on windows of made-up text, with the run's mask.
void rehearse_step(const DryRun& run, RankContext context, Comm& world, const SequenceLayout& layout,
                   RehearsedWindows windows, const std::function<void(Parameters&)>& initialise = {},
                   const std::function<bool()>& again = {});

/// The peak alone, which every window of a step has.
int64_t dry_peak_bytes(const DryRun& run, const SequenceLayout& layout, int world_rank);

/// rates absent: no tape is kept. Takes time and memory for the rank's rows, the ring's size squared and the layers
/// times the ring's size, not for the model. A step of several windows, where they are all alike, is taken for one that goes
/// on as its second.
class DryRank {
 public:
  DryRank(const DryRun& run, const SequenceLayout& layout, int world_rank, const Rates* rates = nullptr);
  const DryStep& step() const { return step_; }
  /// What the rank does in a step whose ring trains one window, or two; the same where it has no more than one.
  const Tape& tape(int64_t windows) const {
    return tapes_[1] && windows > 1 ? *tapes_[1] : *tapes_[0];
  }

 private:
  DryStep step_;
  std::array<std::unique_ptr<Tape>, 2> tapes_;
};

}  // namespace ringlet
