#pragma once

#include <array>
#include <cstdint>
#include <span>

#include "kernels/tensor.h"

namespace ringlet {

/// The operations of Backend whose times are told apart. Products by the operand that is transposed:
/// forward a * b^T, input gradients a * b, weight gradients a^T * b.
enum class Op : uint8_t {
  upload, read, fill, copy, add, matmul_forward, matmul_input_gradient, matmul_weight_gradient,
  rms_norm_forward, rms_norm_backward, rotary_table, qkv_split_forward, qkv_split_backward,
  attention_start, attention_forward, attention_finish, attention_delta, attention_backward,
  swiglu_forward, swiglu_backward, embedding_forward, embedding_backward, cross_entropy,
  sum_of_squares, adamw,
};
inline constexpr int kOpCount = int(Op::adamw) + 1;
std::span<const char* const> op_names();
inline const char* name_of(Op op) { return op_names()[size_t(op)]; }
inline bool is_matmul(Op op) {
  return op >= Op::matmul_forward && op <= Op::matmul_weight_gradient;
}
inline bool is_attention(Op op) { return op == Op::attention_forward || op == Op::attention_backward; }

/// One call, as far as its time depends on it.
struct OpCall {
  Op op = Op::upload;
  /// matmul: m, n, k. attention: query rows, key rows, head_dim. The rest: elements of its largest tensor, elements
  /// of a row, 1.
  std::array<int64_t, 3> size{1, 1, 1};
  /// matmul: 2 m n k flops. attention: flops for each visible pair (4 or 10 * heads * head_dim); who knows the mask
  /// multiplies by the pairs. The rest: elements.
  double work = 0;
  Piece queries{}, keys{};  // attention only; as in AttentionStep
};

}  // namespace ringlet
