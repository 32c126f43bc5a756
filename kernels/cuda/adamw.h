#pragma once

#include <cuda_runtime.h>

#include <span>

#include "kernels/backend.h"

/// The optimizer's operations of Backend, on `stream`; shapes have been checked.
namespace ringlet::cuda {

/// scratch: at least kSumOfSquaresScratchBytes.
void sum_of_squares(cudaStream_t stream, const Tensor& x, std::span<std::byte> scratch, const Tensor& result);
inline constexpr int64_t kSumOfSquaresScratchBytes = 8192;

void adamw(cudaStream_t stream, const AdamW& settings, const Tensor& gradient, const Tensor& weights,
           const Tensor& first_moment, const Tensor& second_moment, const Tensor& rounded);

}  // namespace ringlet::cuda
