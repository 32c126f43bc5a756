#pragma once

#include <cuda_runtime.h>

#include <span>

#include "kernels/backend.h"

/// Rotary positions, heads and QK-norm, as in Backend, on `stream`; shapes have been checked.
namespace ringlet::cuda {

void rotary_table(cudaStream_t stream, std::span<const Piece> pieces, double base, const Tensor& table);
void qkv_split_forward(cudaStream_t stream, const QkvSplit& split, const Tensor& qkv, const Tensor& q,
                       const Tensor& kv);
/// scratch: used for QK-norm only, 1 MiB is always enough; more is faster.
void qkv_split_backward(cudaStream_t stream, const QkvSplit& split, const Tensor& qkv, const Tensor& dq,
                        const Tensor& dkv, std::span<std::byte> scratch, const Tensor& d_qkv,
                        const Tensor& d_q_norm, const Tensor& d_k_norm);

}  // namespace ringlet::cuda
