#pragma once

#include <cuda_runtime.h>

#include "kernels/tensor.h"

/// SwiGLU, as in Backend, on `stream`; shapes have been checked.
namespace ringlet::cuda {

void swiglu_forward(cudaStream_t stream, const Tensor& gate_up, const Tensor& y);
void swiglu_backward(cudaStream_t stream, const Tensor& gate_up, const Tensor& dy, const Tensor& d_gate_up);

}  // namespace ringlet::cuda
