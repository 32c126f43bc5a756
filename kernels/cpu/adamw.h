#pragma once

#include <span>

#include "kernels/backend.h"

/// The optimizer's operations, as in Backend.
namespace ringlet::cpu {

double sum_of_squares(std::span<const float> x);
void adamw(const AdamW& settings, const Tensor& gradient, const Tensor& weights,
           const Tensor& first_moment, const Tensor& second_moment);

}  // namespace ringlet::cpu
