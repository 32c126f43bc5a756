// The inner step of products whose sums stay in registers, compiled once per instruction set (see simd.h).
#include <cstdint>

#include "kernels/cpu/simd.h"

#if defined(RINGLET_CPU_MULTIPLY_STEP_H) == defined(HWY_TARGET_TOGGLE)
#ifdef RINGLET_CPU_MULTIPLY_STEP_H
#undef RINGLET_CPU_MULTIPLY_STEP_H
#else
#define RINGLET_CPU_MULTIPLY_STEP_H
#endif

HWY_BEFORE_NAMESPACE();
namespace ringlet::cpu::HWY_NAMESPACE {

/// sum += factor * the vector at `from`, on AVX2 in one instruction: a compiler that sees the vector read more than
/// once would hold it, and spill another one. Sanitizers do not see into assembly.
template <class D, class V = hn::Vec<D>>
HWY_INLINE void add_product([[maybe_unused]] D d, V factor, const float* from, V& sum) {
#if HWY_TARGET == HWY_AVX2 && !HWY_IS_ASAN && !HWY_IS_TSAN
  asm("vfmadd231ps %2, %1, %0" : "+x"(sum.raw) : "x"(factor.raw), "m"(*reinterpret_cast<const __m256_u*>(from)));
#else
  sum = hn::MulAdd(factor, hn::LoadU(d, from), sum);
#endif
}

/// One step of depth of a block of sums. Vectors beyond kHeld of the right operand are read again for each row.
template <int kRows, int kVectors, int kHeld, class D>
HWY_INLINE void multiply_step(D d, const float* left, int64_t row_step, const float* right,
                              hn::Vec<D> (&sums)[kRows][kVectors]) {
  const auto lanes = int64_t(hn::Lanes(d));
  hn::Vec<D> held[kHeld];
  HWY_UNROLL(16)
  for (int v = 0; v < kHeld; ++v) held[v] = hn::LoadU(d, right + v * lanes);
  HWY_UNROLL(16)
  for (int r = 0; r < kRows; ++r) {
    const hn::Vec<D> factor = hn::Set(d, left[r * row_step]);
    HWY_UNROLL(16)
    for (int v = 0; v < kHeld; ++v) sums[r][v] = hn::MulAdd(factor, held[v], sums[r][v]);
    HWY_UNROLL(16)
    for (int v = kHeld; v < kVectors; ++v) add_product(d, factor, right + v * lanes, sums[r][v]);
  }
}

}  // namespace ringlet::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
