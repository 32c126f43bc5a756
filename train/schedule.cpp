#include "train/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace ringlet {

const char* name_of(ScheduleShape shape) {
  return shape == ScheduleShape::cosine     ? "cosine"
         : shape == ScheduleShape::constant ? "constant"
                                            : "wsd";
}

double learning_rate(const ScheduleSettings& settings, int64_t step) {
  const auto [shape, peak, final_rate, steps, warmup, decay] = settings;
  step = std::min(step, steps);
  if (step < warmup) return peak * double(step) / double(warmup);
  const int64_t fall_start = shape == ScheduleShape::wsd ? steps - decay : warmup;
  if (shape == ScheduleShape::constant || step <= fall_start) return peak;
  if (step == steps) return final_rate;  // exactly, whatever the formulas below round to
  const double progress = double(step - fall_start) / double(steps - fall_start);
  const double height =
      shape == ScheduleShape::wsd ? 1 - progress : (1 + std::cos(std::numbers::pi * progress)) / 2;
  return final_rate + (peak - final_rate) * height;
}

}  // namespace ringlet
