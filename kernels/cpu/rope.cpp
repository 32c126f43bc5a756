#include "kernels/cpu/rope.h"

#include <cmath>
#include <cstring>

#include "kernels/op_shapes.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/rope.cpp"
#include <hwy/foreach_target.h>

#include "kernels/cpu/norm_row.h"

HWY_BEFORE_NAMESPACE();
namespace ringlet::cpu::HWY_NAMESPACE {

enum class Direction { forward, backward };

/// Turns the pairs (i, i + half) by the row's angles, or back. y may be x.
HWY_INLINE void rotate_row(const float* x, const float* rotary, int64_t head_dim,
                           Direction direction, float* y) {
  const int64_t half = head_dim / 2;
  for (int64_t i = 0; i < half; i += float_lanes()) {
    const int64_t left = half - i;
    const FloatVector first = load(x + i, left), second = load(x + half + i, left);
    const FloatVector cosine = load(rotary + i, left);
    FloatVector sine = load(rotary + half + i, left);
    if (direction == Direction::backward) sine = hn::Neg(sine);
    store(hn::NegMulAdd(second, sine, hn::Mul(first, cosine)), y + i, left);
    store(hn::MulAdd(first, sine, hn::Mul(second, cosine)), y + half + i, left);
  }
}

/// The weight that normalises a head of the fused projection; null for none.
HWY_INLINE const float* norm_weight(const QkvSplit& split, int64_t head) {
  const Tensor& norm = head < split.shape.heads ? split.q_norm : split.k_norm;
  return norm ? norm.row<float>(0) : nullptr;
}

/// Where a row of a head of the fused projection stands in q or kv.
HWY_INLINE float* split_row(const QkvSplit& split, const Piece& piece, int64_t row, int64_t head,
                            const Tensor& q, const Tensor& kv) {
  const HeadShape& shape = split.shape;
  if (head < shape.heads) {
    return q.row<float>(head) + (piece.first_row + row) * shape.head_dim;
  }
  const int64_t kv_row =
      2 * shape.kv_heads * piece.first_row + (head - shape.heads) * piece.row_count + row;
  return reinterpret_cast<float*>(kv.data) + kv_row * shape.head_dim;
}

void split_forward(const QkvSplit& split, int64_t first_head, int64_t end_head, const Tensor& qkv,
                   const Tensor& q, const Tensor& kv) {
  const HeadShape& shape = split.shape;
  const int64_t rotated_heads = shape.heads + shape.kv_heads;
  for (const Piece& piece : split.pieces) {
    for (int64_t row = 0; row < piece.row_count; ++row) {
      const float* const rotary = split.rotary.row<float>(piece.first_row + row);
      for (int64_t head = first_head; head < end_head; ++head) {
        const float* from = qkv.row<float>(piece.first_row + row) + head * shape.head_dim;
        float* const to = split_row(split, piece, row, head, q, kv);
        if (head >= rotated_heads) {
          std::memcpy(to, from, shape.head_dim * sizeof(float));
          continue;
        }
        if (const float* const weight = norm_weight(split, head)) {
          norm_row(from, weight, split.epsilon, shape.head_dim, to);
          from = to;
        }
        rotate_row(from, rotary, shape.head_dim, Direction::forward, to);
      }
    }
  }
}

void split_backward(const QkvSplit& split, int64_t first_head, int64_t end_head, const Tensor& qkv,
                    const Tensor& dq, const Tensor& dkv, const Tensor& d_qkv,
                    const Tensor& d_norms) {
  const HeadShape& shape = split.shape;
  const int64_t rotated_heads = shape.heads + shape.kv_heads;
  HWY_ALIGN float unrotated[shapes::kMaxHeadDim];
  for (const Piece& piece : split.pieces) {
    for (int64_t row = 0; row < piece.row_count; ++row) {
      const int64_t all_row = piece.first_row + row;
      for (int64_t head = first_head; head < end_head; ++head) {
        const float* const from = split_row(split, piece, row, head, dq, dkv);
        float* const to = d_qkv.row<float>(all_row) + head * shape.head_dim;
        if (head >= rotated_heads) {
          std::memcpy(to, from, shape.head_dim * sizeof(float));
          continue;
        }
        const float* const weight = norm_weight(split, head);
        rotate_row(from, split.rotary.row<float>(all_row), shape.head_dim, Direction::backward,
                   weight != nullptr ? unrotated : to);
        if (weight == nullptr) continue;
        norm_row_backward(qkv.row<float>(all_row) + head * shape.head_dim, weight, split.epsilon,
                          unrotated, shape.head_dim, Write::set, to, d_norms.row<float>(head));
      }
    }
  }
}

}  // namespace ringlet::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace ringlet::cpu {

HWY_EXPORT(split_forward);
HWY_EXPORT(split_backward);

void rotary_table(std::span<const Piece> pieces, double base, int64_t first_pair, int64_t end_pair,
                  const Tensor& table) {
  const int64_t half = table.shape[1] / 2;
  for (int64_t i = first_pair; i < end_pair; ++i) {
    const double frequency = std::pow(base, -double(i) / double(half));
    for (const Piece& piece : pieces) {
      for (int64_t row = 0; row < piece.row_count; ++row) {
        const double angle = double(piece.position(row)) * frequency;
        float* const to = table.row<float>(piece.first_row + row);
        to[i] = float(std::cos(angle));
        to[half + i] = float(std::sin(angle));
      }
    }
  }
}

void qkv_split_forward(const QkvSplit& split, int64_t first_head, int64_t end_head,
                       const Tensor& qkv, const Tensor& q, const Tensor& kv) {
  HWY_DYNAMIC_DISPATCH(split_forward)(split, first_head, end_head, qkv, q, kv);
}

void qkv_split_backward(const QkvSplit& split, int64_t first_head, int64_t end_head,
                        const Tensor& qkv, const Tensor& dq, const Tensor& dkv, const Tensor& d_qkv,
                        const Tensor& d_norms) {
  HWY_DYNAMIC_DISPATCH(split_backward)(split, first_head, end_head, qkv, dq, dkv, d_qkv, d_norms);
}

}  // namespace ringlet::cpu
#endif
