#pragma once

#include <cuda_runtime.h>

#include "kernels/tensor.h"

/// Operations of Backend (contracts there) that move or add elements, on `stream`; shapes have been checked.
namespace ringlet::cuda {

void fill(cudaStream_t stream, float value, const Tensor& to);
void copy(cudaStream_t stream, const Tensor& from, const Tensor& to);
void add(cudaStream_t stream, const Tensor& from, const Tensor& to);
void copy_rows(cudaStream_t stream, const Tensor& from, int64_t first_row, const Tensor& to);

}  // namespace ringlet::cuda
