#pragma once

#include <span>

#include "kernels/backend.h"

/// The optimizer's operations, as in Backend.
namespace ringlet::cpu {

/// The settings, with what is the same for all elements worked out in double.
struct AdamWFactors {
  float gradient_scale, beta1, rest1, beta2, rest2, epsilon;
  float moment_scale;  // of the square root of the second moment: 1 / sqrt(1 - beta2^step)
  float step_size;     // learning_rate / (1 - beta1^step)
  float decay;         // learning_rate * weight_decay
};

double sum_of_squares(std::span<const float> x);
void adamw(const AdamW& settings, const Tensor& gradient, const Tensor& weights,
           const Tensor& first_moment, const Tensor& second_moment);

}  // namespace ringlet::cpu
