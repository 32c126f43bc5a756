#pragma once

#include <cuda_runtime.h>

#include <span>

#include "kernels/backend.h"

/// RMSNorm, as in Backend, on `stream`; shapes have been checked.
namespace ringlet::cuda {

void rms_norm_forward(cudaStream_t stream, const Tensor& x, const Tensor& weight, float epsilon,
                      const Tensor& y);
/// scratch: at least a row of floats; more is faster.
void rms_norm_backward(cudaStream_t stream, const Tensor& x, const Tensor& weight, float epsilon,
                       const Tensor& dy, Write write, std::span<std::byte> scratch, const Tensor& dx,
                       const Tensor& d_weight);

}  // namespace ringlet::cuda
