#pragma once

#include <functional>
#include <memory>

#include "model/parameters.h"
#include "train/config.h"
#include "train/plan/tape.h"

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
  double matmul_flops = 0, attention_flops = 0;  // executed in a step
};

/// The vocabulary of the config's corpus; that of bytes where there is none.
int64_t planned_vocabulary(const Config& config);

/// What a dry run is of. The config is resolved; its run.ranks and run.ring say of which world.
struct DryRun {
  const Config& config;
  GptConfig gpt;
  Mask mask{};  // of every window
};

/// One step of one rank on made-up text, `windows` windows of it, through the trainer's own parts; nothing is allocated
/// before, nothing stays allocated after. Collective.
/// initialise: gives the weights their values; absent: they are 0.
void rehearse_step(const DryRun& run, RankContext context, Comm& world, const SequenceLayout& layout,
                   int64_t windows, const std::function<void(Parameters&)>& initialise = {});

/// rates absent: no tape is kept. Takes time and memory for the rank's rows, the ring's size squared and the layers
/// times the ring's size, not for the model. A step of several windows is taken for one that goes on as its second.
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
