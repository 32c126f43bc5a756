#pragma once

#include <span>

#include "kernels/backend.h"

/// The promises that every operation of Backend makes about shapes, dtypes and contiguity: one
/// function per operation, named like it, used by all backends. Each throws Error that names the
/// operation, the tensor, what it is and what it should be. Nothing is read from the tensors'
/// memory.
namespace ringlet::shapes {

/// Backends keep one row of a head, or tiles of them, in buffers of a fixed size.
inline constexpr int64_t kMaxHeadDim = 512;

struct MatmulSizes {
  int64_t m, n, k;
};

void upload(std::span<const std::byte> host, const Tensor& to);
void read(const Tensor& from, std::span<std::byte> host);
void fill(const Tensor& to);
void copy(const Tensor& from, const Tensor& to);
void add(const Tensor& from, const Tensor& to);
void copy_rows(const Tensor& from, int64_t first_row, const Tensor& to);

MatmulSizes matmul(const Tensor& a, Transpose transpose_a, const Tensor& b, Transpose transpose_b,
                   const Tensor& out);

void rms_norm_forward(const Tensor& x, const Tensor& weight, const Tensor& y);
void rms_norm_backward(const Tensor& x, const Tensor& weight, const Tensor& dy, const Tensor& dx,
                       const Tensor& d_weight);

void rotary_table(std::span<const Piece> pieces, const Tensor& table);
void qkv_split_forward(const QkvSplit& split, const Tensor& qkv, const Tensor& q, const Tensor& kv);
void qkv_split_backward(const QkvSplit& split, const Tensor& qkv, const Tensor& dq,
                        const Tensor& dkv, const Tensor& d_qkv, const Tensor& d_q_norm,
                        const Tensor& d_k_norm);

void attention_start(const AttentionState& state);
void attention_forward(const AttentionStep& step, const Tensor& q, const Tensor& kv,
                       const AttentionState& state);
void attention_finish(const HeadShape& shape, const AttentionState& state, const Tensor& output,
                      const Tensor& lse);
void attention_delta(const HeadShape& shape, const Tensor& output, const Tensor& d_output,
                     const Tensor& delta);
void attention_backward(const AttentionStep& step, const Tensor& q, const Tensor& kv,
                        const AttentionGradient& gradient, const Tensor& dq, const Tensor& dkv);

void swiglu_forward(const Tensor& gate_up, const Tensor& y);
void swiglu_backward(const Tensor& gate_up, const Tensor& dy, const Tensor& d_gate_up);

void embedding_forward(const Tensor& tokens, const Tensor& table, const Tensor& y);
void embedding_backward(const Tensor& tokens, const Tensor& dy, const Tensor& d_table);
void cross_entropy(const Tensor& logits, const Tensor& labels, const Tensor& losses);
void sum_of_squares(const Tensor& x, const Tensor& result);
void adamw(const AdamW& settings, const Tensor& gradient, const Tensor& weights,
           const Tensor& first_moment, const Tensor& second_moment, const Tensor& rounded);

}  // namespace ringlet::shapes
