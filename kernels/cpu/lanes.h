// Included once for each SIMD target, so it has a guard that turns instead of #pragma once.
#if defined(RINGLET_KERNELS_CPU_LANES_H) == defined(HWY_TARGET_TOGGLE)
#ifdef RINGLET_KERNELS_CPU_LANES_H
#undef RINGLET_KERNELS_CPU_LANES_H
#else
#define RINGLET_KERNELS_CPU_LANES_H
#endif

#include <hwy/highway.h>

#include <cstdint>
#include <limits>

HWY_BEFORE_NAMESPACE();
namespace ringlet::cpu::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;
using Floats = hn::ScalableTag<float>;
using FloatVector = hn::Vec<Floats>;

HWY_INLINE int64_t float_lanes() { return static_cast<int64_t>(hn::Lanes(Floats())); }

/// The next `count` floats, or as many as a vector holds; lanes beyond them are `rest`.
HWY_INLINE FloatVector load(const float* from, int64_t count, float rest = 0) {
  const Floats d;
  if (count >= float_lanes()) return hn::LoadU(d, from);
  HWY_ALIGN float buffer[HWY_MAX_BYTES / sizeof(float)];
  for (int64_t i = 0; i < float_lanes(); ++i) buffer[i] = i < count ? from[i] : rest;
  return hn::Load(d, buffer);
}

/// The first `count` lanes, or all.
HWY_INLINE void store(FloatVector vector, float* to, int64_t count) {
  const Floats d;
  if (count >= float_lanes()) return hn::StoreU(vector, d, to);
  HWY_ALIGN float buffer[HWY_MAX_BYTES / sizeof(float)];
  hn::Store(vector, d, buffer);
  for (int64_t i = 0; i < count; ++i) to[i] = buffer[i];
}

HWY_INLINE float sum_of(FloatVector vector) {
  const Floats d;
  return hn::GetLane(hn::SumOfLanes(d, vector));
}

/// e^x to 2e-7 (relative): the range reduction and the polynomial of Cephes' expf (Moshier 1992).
/// 0 below -87.3, infinity above 88.3, NaN stays NaN.
HWY_INLINE FloatVector exponential(FloatVector x) {
  const Floats d;
  const hn::RebindToSigned<Floats> di;
  const auto exponent = hn::NearestInt(hn::Mul(x, hn::Set(d, 1.44269504f)));
  const FloatVector n = hn::ConvertTo(d, exponent);
  // ln 2 in two parts: the first has trailing zeros, so that its product with n is exact.
  FloatVector r = hn::NegMulAdd(n, hn::Set(d, 0.693359375f), x);
  r = hn::NegMulAdd(n, hn::Set(d, -2.12194440e-4f), r);
  FloatVector p = hn::Set(d, 1.9875691500e-4f);
  p = hn::MulAdd(p, r, hn::Set(d, 1.3981999507e-3f));
  p = hn::MulAdd(p, r, hn::Set(d, 8.3334519073e-3f));
  p = hn::MulAdd(p, r, hn::Set(d, 4.1665795894e-2f));
  p = hn::MulAdd(p, r, hn::Set(d, 1.6666665459e-1f));
  p = hn::MulAdd(p, r, hn::Set(d, 5.0000001201e-1f));
  p = hn::Add(hn::MulAdd(p, hn::Mul(r, r), r), hn::Set(d, 1.0f));
  const auto power = hn::BitCast(d, hn::ShiftLeft<23>(hn::Add(exponent, hn::Set(di, 127))));
  const FloatVector result = hn::IfThenZeroElse(hn::Lt(x, hn::Set(d, -87.3f)), hn::Mul(p, power));
  return hn::IfThenElse(hn::Gt(x, hn::Set(d, 88.3f)),
                        hn::Set(d, std::numeric_limits<float>::infinity()), result);
}

/// 1 / (1 + e^-x).
HWY_INLINE FloatVector sigmoid(FloatVector x) {
  const FloatVector one = hn::Set(Floats(), 1.0f);
  return hn::Div(one, hn::Add(one, exponential(hn::Neg(x))));
}

}  // namespace ringlet::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
