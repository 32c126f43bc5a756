#pragma once

#include <span>

#include "kernels/backend.h"

/// RMSNorm, as in Backend.
namespace ringlet::cpu {

void rms_norm_forward(const Tensor& x, const Tensor& weight, float epsilon, const Tensor& y);
/// d_weight may be absent: left to rms_norm_weight_gradient. scales gets each row's 1 / sqrt(mean(x^2) + epsilon).
void rms_norm_backward(const Tensor& x, const Tensor& weight, float epsilon, const Tensor& dy, Write write,
                       const Tensor& dx, const Tensor& d_weight, std::span<float> scales);
/// Adds columns [first, first + count) to d_weight, in the order of the rows: the same bits as
/// rms_norm_backward's.
void rms_norm_weight_gradient(const Tensor& x, std::span<const float> scales, const Tensor& dy, int64_t first,
                              int64_t count, const Tensor& d_weight);

}  // namespace ringlet::cpu
