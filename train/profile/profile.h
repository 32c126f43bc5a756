#pragma once

#include <functional>

#include "data/batch.h"
#include "train/config.h"
#include "train/metrics.h"
#include "train/profile/recording.h"

namespace ringlet {

struct ProfileSteps {
  int64_t measured = 3;
  int64_t warmup = 2;  // before them, at least 1; not recorded, but they tell how much room the records need
};

struct Profile {
  Recording recording;
  std::vector<MetricsRecord> records;  // of the measured steps
  bool stopped = false;                // as `stop_requested` asked; then there is no more
};

/// Trains warmup and measured steps on the ranks of the config, the trainer's own, with every call of devices and Comms
/// recorded; saves nothing. stop_requested: asked by every rank in each step; may be absent. Throws what training throws.
Profile record_profile(const Config& config, const GptConfig& gpt, const WindowReader& windows, const ProfileSteps& steps,
                       const std::function<bool()>& stop_requested = {});

}  // namespace ringlet
