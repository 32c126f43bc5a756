#pragma once

#include <cuda_runtime.h>

#include "kernels/backend.h"

/// Cross entropy, as in Backend, on `stream`; shapes have been checked. A label outside [-1, vocabulary)
/// gives a loss of NaN.
namespace ringlet::cuda {

void cross_entropy(cudaStream_t stream, const Tensor& logits, const Tensor& labels, CrossEntropy mode,
                   float gradient_scale, const Tensor& losses);

}  // namespace ringlet::cuda
