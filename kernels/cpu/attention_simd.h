// Small matrix products and masks of the attention kernels, compiled once per instruction set (see
// simd.h).
#include <array>
#include <cstdint>

#include "kernels/cpu/attention_tiles.h"
#include "kernels/cpu/multiply_step.h"
#include "kernels/cpu/prefetch.h"
#include "kernels/cpu/simd.h"

#if defined(RINGLET_CPU_ATTENTION_SIMD_H) == defined(HWY_TARGET_TOGGLE)
#ifdef RINGLET_CPU_ATTENTION_SIMD_H
#undef RINGLET_CPU_ATTENTION_SIMD_H
#else
#define RINGLET_CPU_ATTENTION_SIMD_H
#endif

HWY_BEFORE_NAMESPACE();
namespace ringlet::cpu::HWY_NAMESPACE {

struct Extent {
  int64_t rows, columns, depth;
};

/// Elements and the distance of rows (of a transposed left operand: of steps of depth).
template <class T>
struct Matrix {
  T* data;
  int64_t stride;
};

/// result [rows, columns] <- left [rows, depth] * right [depth, columns]; columns: whole vectors, or a multiple of 8.
struct Product {
  Extent extent;
  Matrix<const float> left, right;
  Matrix<float> result;
};

/// The `floats` before each of several places, fetched line by line while `tiles` tiles of queries are computed.
template <size_t kCount>
class Ahead {
 public:
  Ahead() = default;
  Ahead(const std::array<const float*, kCount>& ends, int64_t floats, int64_t tiles, int64_t head_dim) {
    constexpr int64_t kLine = Prefetch::kLineFloats;
    // Two products, of kTile rows and of head_dim, make about this many blocks, or more.
    const int64_t blocks = tiles * (kTile + head_dim) / 8;
    for (size_t i = 0; i < kCount; ++i) lines_[i] = Prefetch(ends[i] - floats, kLine, floats / kLine, 1, blocks);
  }
  HWY_INLINE void fetch_some() {
    for (Prefetch& lines : lines_) lines.go_on();
  }

 private:
  std::array<Prefetch, kCount> lines_;
};

enum class Left : uint8_t { plain, transposed };

/// What becomes of a product: each writes one vector, from `column` on.
struct SetResult {
  template <class D>
  HWY_INLINE void operator()(D d, int64_t, hn::Vec<D> product, float* to) const {
    hn::StoreU(product, d, to);
  }
};
struct AddScaled {  // result += *scale * product; in memory, which leaves its register to a sum
  const float* scale;
  template <class D>
  HWY_INLINE void operator()(D d, int64_t, hn::Vec<D> product, float* to) const {
    hn::StoreU(hn::MulAdd(product, hn::Set(d, *scale), hn::LoadU(d, to)), d, to);
  }
};
struct RescaleAndAdd {  // result = result * factor[column] + product
  const float* factor;
  template <class D>
  HWY_INLINE void operator()(D d, int64_t column, hn::Vec<D> product, float* to) const {
    hn::StoreU(hn::MulAdd(hn::LoadU(d, to), hn::LoadU(d, factor + column), product), d, to);
  }
};

// Blocks of sums four vectors wide, where registers are many or a multiply-add can read one of the four by itself.
#if HWY_TARGET == HWY_AVX2
inline constexpr bool kWideBlocks = true;
#else
inline constexpr bool kWideBlocks = kManyRegisters;
#endif

/// kRows rows from `row`, kVectors vectors from `column`: sums stay in registers, each in the order of depth.
template <Left kLeft, int kRows, int kVectors, int kHeld, class D, class Write>
HWY_INLINE void multiply_block(D d, const Product& p, int64_t row, int64_t column, Write write) {
  const auto lanes = int64_t(hn::Lanes(d));
  const int64_t row_step = kLeft == Left::plain ? p.left.stride : 1;
  const int64_t depth_step = kLeft == Left::plain ? 1 : p.left.stride;
  const float* left = p.left.data + row * row_step;
  const float* right = p.right.data + column;
  hn::Vec<D> sums[kRows][kVectors];
  HWY_UNROLL(16)
  for (int r = 0; r < kRows; ++r) {
    HWY_UNROLL(16)
    for (int v = 0; v < kVectors; ++v) sums[r][v] = hn::Zero(d);
  }
  for (const float* const end = right + p.extent.depth * p.right.stride; right != end;
       left += depth_step, right += p.right.stride) {
    multiply_step<kRows, kVectors, kHeld>(d, left, row_step, right, sums);
  }
  float* result = p.result.data + row * p.result.stride + column;
  HWY_UNROLL(16)
  for (int r = 0; r < kRows; ++r) {
    HWY_UNROLL(16)
    for (int v = 0; v < kVectors; ++v) {
      write(d, column + v * lanes, sums[r][v], result + r * p.result.stride + v * lanes);
    }
  }
}

/// All rows from `row`, in blocks of kRows, then of fewer: eight sums still hide the latency of the multiply-add, so of
/// blocks of three, four rows that are left go as 2 + 2, not as 3 + 1.
template <Left kLeft, int kRows, int kVectors, int kHeld, class D, class Write, size_t kCount>
HWY_INLINE void multiply_rows(D d, const Product& p, int64_t row, int64_t column, Write write,
                              Ahead<kCount>& ahead) {
  for (; row + kRows <= p.extent.rows && !(kRows == 3 && row + 4 == p.extent.rows); row += kRows) {
    ahead.fetch_some();
    multiply_block<kLeft, kRows, kVectors, kHeld>(d, p, row, column, write);
  }
  if constexpr (kRows > 1) {
    constexpr int kFewer = kRows > 4 ? 4 : (kRows + 1) / 2;
    if (row < p.extent.rows) multiply_rows<kLeft, kFewer, kVectors, kHeld>(d, p, row, column, write, ahead);
  }
}

/// Blocks of up to 24 sums (12 where registers are few) hide the latency of the multiply-add, and load little for each:
/// see matmul.cpp.
template <Left kLeft, class Write, size_t kCount>
HWY_NOINLINE void multiply(const Extent& extent, Matrix<const float> left, Matrix<const float> right,
                           Matrix<float> result, Write write, Ahead<kCount>& ahead) {
  const Product p{extent, left, right, result};
  const hn::ScalableTag<float> d;
  const hn::CappedTag<float, 8> d8;
  const auto lanes = int64_t(hn::Lanes(d));
  int64_t column = 0;
  if constexpr (kWideBlocks) {
    for (; column + 4 * lanes <= p.extent.columns; column += 4 * lanes) {
      multiply_rows<kLeft, kManyRegisters ? 6 : 3, 4, kManyRegisters ? 4 : 3>(d, p, 0, column, write, ahead);
    }
  }
  for (; column + 2 * lanes <= p.extent.columns; column += 2 * lanes) {
    multiply_rows<kLeft, kManyRegisters ? 8 : 6, 2, 2>(d, p, 0, column, write, ahead);
  }
  for (; column + lanes <= p.extent.columns; column += lanes) {
    multiply_rows<kLeft, 8, 1, 1>(d, p, 0, column, write, ahead);
  }
  for (; column < p.extent.columns; column += int64_t(hn::Lanes(d8))) {
    multiply_rows<kLeft, 8, 1, 1>(d8, p, 0, column, write, ahead);
  }
}

/// The queries of one vector of lanes, and which keys of a tile they see: all, or those that `rows`
/// names.
template <Visible kVisible, class D>
class SeenBy {
 public:
  using V = hn::Vec<D>;
  HWY_INLINE SeenBy(D d, const VisibleRows* rows, int64_t lane)
      : begin_(hn::Zero(d)), end_(hn::Zero(d)) {
    if constexpr (kVisible == Visible::some) {
      begin_ = hn::Load(d, rows->begin + lane);
      end_ = hn::Load(d, rows->end + lane);
    }
  }

  /// `seen` in lanes that see the key, `unseen` in the others.
  HWY_INLINE V select(D d, int64_t key, V seen, V unseen) const {
    if constexpr (kVisible == Visible::all) return seen;
    const V row = hn::Set(d, float(key));
    return hn::IfThenElse(hn::And(hn::Ge(row, begin_), hn::Lt(row, end_)), seen, unseen);
  }

 private:
  V begin_, end_;
};

/// Queries of a tile in whole vectors.
HWY_INLINE int64_t whole_vectors(int64_t queries) {
  const auto lanes = int64_t(hn::Lanes(hn::ScalableTag<float>()));
  return (queries + lanes - 1) / lanes * lanes;
}

}  // namespace ringlet::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
