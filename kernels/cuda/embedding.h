#pragma once

#include <cuda_runtime.h>

#include <span>

#include "kernels/tensor.h"

/// The embedding's operations of Backend, on `stream`; shapes have been checked.
namespace ringlet::cuda {

void embedding_forward(cudaStream_t stream, const Tensor& tokens, const Tensor& table, const Tensor& y);
/// scratch: at least kEmbeddingScratchBytes.
void embedding_backward(cudaStream_t stream, const Tensor& tokens, const Tensor& dy,
                        std::span<std::byte> scratch, const Tensor& d_table);
inline constexpr int64_t kEmbeddingScratchBytes = 32 << 20;

}  // namespace ringlet::cuda
