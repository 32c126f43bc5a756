#pragma once

#include "kernels/backend.h"

/// Rotary positions, heads and QK-norm, as in Backend, a part at a time. Heads are counted over q,
/// keys and values.
namespace ringlet::cpu {

void rotary_table(std::span<const Piece> pieces, double base, int64_t first_pair, int64_t end_pair,
                  const Tensor& table);
void qkv_split_forward(const QkvSplit& split, int64_t first_head, int64_t end_head,
                       const Tensor& qkv, const Tensor& q, const Tensor& kv);
/// d_norms: [heads + kv_heads, head_dim], added to: the gradient of the norm's weight by head.
void qkv_split_backward(const QkvSplit& split, int64_t first_head, int64_t end_head,
                        const Tensor& qkv, const Tensor& dq, const Tensor& dkv, const Tensor& d_qkv,
                        const Tensor& d_norms);

}  // namespace ringlet::cpu
