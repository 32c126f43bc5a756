#pragma once

#include <cmath>

#include "kernels/backend.h"

namespace ringlet {

/// The settings of AdamW, with what is the same for all elements worked out in double: every device takes these.
struct AdamWFactors {
  float gradient_scale, beta1, rest1, beta2, rest2, epsilon;
  float moment_scale;  // of the square root of the second moment: 1 / sqrt(1 - beta2^step)
  float step_size;     // learning_rate / (1 - beta1^step)
  float decay;         // learning_rate * weight_decay
};

inline AdamWFactors factors_of(const AdamW& settings) {
  const double beta1 = settings.beta1, beta2 = settings.beta2, rate = settings.learning_rate;
  return {.gradient_scale = settings.gradient_scale,
          .beta1 = settings.beta1,
          .rest1 = float(1 - beta1),
          .beta2 = settings.beta2,
          .rest2 = float(1 - beta2),
          .epsilon = settings.epsilon,
          .moment_scale = float(1 / std::sqrt(1 - std::pow(beta2, double(settings.step)))),
          .step_size = float(rate / (1 - std::pow(beta1, double(settings.step)))),
          .decay = float(rate * double(settings.weight_decay))};
}

}  // namespace ringlet
