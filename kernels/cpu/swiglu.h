#pragma once

#include "kernels/tensor.h"

/// SwiGLU, as in Backend.
namespace ringlet::cpu {

void swiglu_forward(const Tensor& gate_up, const Tensor& y);
void swiglu_backward(const Tensor& gate_up, const Tensor& dy, const Tensor& d_gate_up);

}  // namespace ringlet::cpu
