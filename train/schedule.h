#pragma once

#include <cstdint>

namespace ringlet {

enum class ScheduleShape : uint8_t { cosine, constant, wsd };
const char* name_of(ScheduleShape shape);

/// How the learning rate runs over a training. Requires 0 <= warmup_steps <= steps and, for wsd,
/// warmup_steps + decay_steps <= steps.
struct ScheduleSettings {
  ScheduleShape shape = ScheduleShape::cosine;
  double peak_rate = 1e-3, final_rate = 1e-4;
  int64_t steps = 1000, warmup_steps = 20;
  int64_t decay_steps = 0;  // wsd: the last steps, in which the rate falls
};

/// The rate of step 1, 2, ..., `steps`.
///   warm-up: peak * step / warmup_steps, so that no step has rate zero and step warmup_steps the
///   peak itself; cosine: half a cosine from the peak down to the final rate, which the last step
///   has exactly; wsd: the peak, then a straight line to the final rate, which the last step has
///   exactly (arXiv:2404.06395); constant: the peak.
/// A warm-up as long as the training ends at the peak. Steps beyond the last one keep the last
/// rate.
double learning_rate(const ScheduleSettings& settings, int64_t step);

}  // namespace ringlet
