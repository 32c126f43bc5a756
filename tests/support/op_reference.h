#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/backend.h"

/// The operations of Backend in double: the plainest loops that define them. Attention has a
/// reference of its own. Arguments as in backend.h; sizes that vectors do not tell are given.
namespace ringlet::test::reference {

using Doubles = std::vector<double>;

/// op(a) [m, k] * op(b) [k, n].
Doubles matmul(const Doubles& a, Transpose transpose_a, const Doubles& b, Transpose transpose_b,
               int64_t m, int64_t n, int64_t k);

Doubles rms_norm(const Doubles& x, const Doubles& weight, double epsilon);
struct NormGradient {
  Doubles dx, d_weight;
};
NormGradient rms_norm_backward(const Doubles& x, const Doubles& weight, double epsilon,
                               const Doubles& dy);

/// Angles in long double.
Doubles rotary_table(std::span<const Piece> pieces, double base, int64_t head_dim);

struct SplitInput {
  HeadShape shape;
  std::vector<Piece> pieces;
  Doubles rotary, q_norm, k_norm;  // norms empty: no QK-norm
  double epsilon;
};
struct Split {
  Doubles q, kv;
};
Split qkv_split(const SplitInput& input, const Doubles& qkv);
struct SplitGradient {
  Doubles d_qkv, d_q_norm, d_k_norm;
};
SplitGradient qkv_split_backward(const SplitInput& input, const Doubles& qkv,
                                 const Split& gradient);

Doubles swiglu(const Doubles& gate_up, int64_t width);
Doubles swiglu_backward(const Doubles& gate_up, const Doubles& dy, int64_t width);

Doubles cross_entropy(const Doubles& logits, const std::vector<int32_t>& labels);
/// Of the sum of the losses.
Doubles cross_entropy_backward(const Doubles& logits, const std::vector<int32_t>& labels);

struct AdamWState {
  Doubles weights, first_moment, second_moment;
};
AdamWState adamw(const AdamW& settings, const Doubles& gradient, AdamWState state);

}  // namespace ringlet::test::reference
