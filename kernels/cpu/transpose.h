// Included once for each SIMD target, so it has a guard that turns instead of #pragma once.
#if defined(RINGLET_KERNELS_CPU_TRANSPOSE_H) == defined(HWY_TARGET_TOGGLE)
#ifdef RINGLET_KERNELS_CPU_TRANSPOSE_H
#undef RINGLET_KERNELS_CPU_TRANSPOSE_H
#else
#define RINGLET_KERNELS_CPU_TRANSPOSE_H
#endif

#include <hwy/highway.h>

#include <algorithm>
#include <cstdint>

HWY_BEFORE_NAMESPACE();
namespace ringlet::cpu::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

/// to [columns, to_width] = scale * transposed from [rows, columns], rows `row_step` apart; rows <= to_width, what lies
/// beyond them becomes 0. Blocks of 4 x 4 are turned in registers.
HWY_INLINE void transpose(const float* HWY_RESTRICT from, int64_t row_step, int64_t rows, int64_t columns,
                          float* HWY_RESTRICT to, int64_t to_width, float scale = 1) {
  int64_t first_row = 0;
#if HWY_TARGET != HWY_SCALAR
  const hn::FixedTag<float, 4> d;
  const auto scales = hn::Set(d, scale);
  for (; first_row + 4 <= rows; first_row += 4) {
    const float* const row = from + first_row * row_step;
    float* const out = to + first_row;
    int64_t column = 0;
    for (; column + 4 <= columns; column += 4) {
      const auto load = [&](int64_t i) { return hn::Mul(hn::LoadU(d, row + i * row_step + column), scales); };
      const auto a = load(0), b = load(1), c = load(2), e = load(3);
      const auto ac_low = hn::InterleaveLower(d, a, c), ac_high = hn::InterleaveUpper(d, a, c);
      const auto be_low = hn::InterleaveLower(d, b, e), be_high = hn::InterleaveUpper(d, b, e);
      hn::StoreU(hn::InterleaveLower(d, ac_low, be_low), d, out + column * to_width);
      hn::StoreU(hn::InterleaveUpper(d, ac_low, be_low), d, out + (column + 1) * to_width);
      hn::StoreU(hn::InterleaveLower(d, ac_high, be_high), d, out + (column + 2) * to_width);
      hn::StoreU(hn::InterleaveUpper(d, ac_high, be_high), d, out + (column + 3) * to_width);
    }
    for (; column < columns; ++column) {
      for (int64_t i = 0; i < 4; ++i) out[column * to_width + i] = row[i * row_step + column] * scale;
    }
  }
#endif
  for (int64_t column = 0; column < columns; ++column, to += to_width) {
    for (int64_t row = first_row; row < rows; ++row) to[row] = from[row * row_step + column] * scale;
    std::fill(to + rows, to + to_width, 0.0f);
  }
}

}  // namespace ringlet::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
