#pragma once

#include "kernels/backend.h"

/// RMSNorm, as in Backend.
namespace ringlet::cpu {

void rms_norm_forward(const Tensor& x, const Tensor& weight, float epsilon, const Tensor& y);
void rms_norm_backward(const Tensor& x, const Tensor& weight, float epsilon, const Tensor& dy,
                       Write write, const Tensor& dx, const Tensor& d_weight);

}  // namespace ringlet::cpu
