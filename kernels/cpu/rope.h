#pragma once

#include "kernels/backend.h"

/// Rotary positions, heads and QK-norm, as in Backend.
namespace ringlet::cpu {

void rotary_table(std::span<const Piece> pieces, double base, const Tensor& table);
void qkv_split_forward(const QkvSplit& split, const Tensor& qkv, const Tensor& q, const Tensor& kv);
void qkv_split_backward(const QkvSplit& split, const Tensor& qkv, const Tensor& dq,
                        const Tensor& dkv, const Tensor& d_qkv, const Tensor& d_q_norm,
                        const Tensor& d_k_norm);

}  // namespace ringlet::cpu
