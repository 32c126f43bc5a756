// SIMD helpers, compiled once per instruction set: include after hwy/foreach_target.h, as simd.h's
// users do. The guard is Highway's: it toggles, so that each instruction set gets its own copy.
#include <hwy/highway.h>

#if defined(RINGLET_CPU_SIMD_H) == defined(HWY_TARGET_TOGGLE)
#ifdef RINGLET_CPU_SIMD_H
#undef RINGLET_CPU_SIMD_H
#else
#define RINGLET_CPU_SIMD_H
#endif

HWY_BEFORE_NAMESPACE();
namespace ringlet::cpu::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

/// 32 vector registers instead of 16: products hold larger blocks of the result.
#if HWY_ARCH_X86 && HWY_TARGET > HWY_AVX3
inline constexpr bool kManyRegisters = false;
#else
inline constexpr bool kManyRegisters = true;
#endif

/// 2^x for x <= 127 (above: anything, for callers to select away), in f32, relative error below
/// 2e-7; exactly 1 at 0, NaN stays NaN. Below 2^-126 the result may be 0, far below it is. A
/// minimax polynomial on the fraction of x, scaled by the whole part.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V exp2_of(D d, V x) {
#if HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX3
  static_assert(hn::MaxLanes(D()) == 16, "written for whole AVX-512 vectors");
  const V fraction{_mm512_reduce_ps(x.raw, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC)};
  V y = hn::Set(d, 0.001867130166f);
  y = hn::MulAdd(y, fraction, hn::Set(d, 0.009017029777f));
  y = hn::MulAdd(y, fraction, hn::Set(d, 0.05579991266f));
  y = hn::MulAdd(y, fraction, hn::Set(d, 0.2401644439f));
  y = hn::MulAdd(y, fraction, hn::Set(d, 0.6931512952f));
  y = hn::MulAdd(y, fraction, hn::Set(d, 1.0f));
  return V{_mm512_scalef_ps(y.raw, x.raw)};
#else
  // Adding 1.5 * 2^23 + 127 leaves the nearest whole number, 127 above it, in the low bits, which
  // become the exponent: 0 for -127, so that the result is 0.
  const V shift = hn::Set(d, 12582912.0f + 127.0f), lowest = hn::Set(d, -127.0f);
#if HWY_ARCH_X86 && HWY_TARGET <= HWY_SSE4
  x = hn::Max(lowest, x);  // one instruction, which gives its second operand for NaN
#else
  x = hn::IfThenElse(hn::Lt(x, lowest), lowest, x);
#endif
  const V shifted = hn::Add(x, shift), fraction = hn::Sub(x, hn::Sub(shifted, shift));
  V y = hn::Set(d, 0.001326472731f);
  y = hn::MulAdd(y, fraction, hn::Set(d, 0.009671512991f));
  y = hn::MulAdd(y, fraction, hn::Set(d, 0.05550733581f));
  y = hn::MulAdd(y, fraction, hn::Set(d, 0.2402224243f));
  y = hn::MulAdd(y, fraction, hn::Set(d, 0.6931470037f));
  y = hn::MulAdd(y, fraction, hn::Set(d, 1.0f));
  const hn::RebindToSigned<D> di;
  return hn::Mul(y, hn::BitCast(d, hn::ShiftLeft<23>(hn::BitCast(di, shifted))));
#endif
}

}  // namespace ringlet::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
