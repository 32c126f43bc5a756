// Included once for each SIMD target, so it has a guard that turns instead of #pragma once.
#if defined(RINGLET_KERNELS_CPU_NORM_ROW_H) == defined(HWY_TARGET_TOGGLE)
#ifdef RINGLET_KERNELS_CPU_NORM_ROW_H
#undef RINGLET_KERNELS_CPU_NORM_ROW_H
#else
#define RINGLET_KERNELS_CPU_NORM_ROW_H
#endif

#include <cmath>

#include "kernels/backend.h"
#include "kernels/cpu/lanes.h"

HWY_BEFORE_NAMESPACE();
namespace ringlet::cpu::HWY_NAMESPACE {

/// 1 / sqrt(mean(x^2) + epsilon) of one row.
HWY_INLINE float inverse_rms(const float* x, float epsilon, int64_t width) {
  FloatVector sum = hn::Zero(Floats());
  for (int64_t i = 0; i < width; i += float_lanes()) {
    const FloatVector values = load(x + i, width - i);
    sum = hn::MulAdd(values, values, sum);
  }
  return 1.0f / std::sqrt(sum_of(sum) / static_cast<float>(width) + epsilon);
}

/// RMSNorm of one row. y may be x.
HWY_INLINE void norm_row(const float* x, const float* weight, float epsilon, int64_t width,
                         float* y) {
  const FloatVector scale = hn::Set(Floats(), inverse_rms(x, epsilon, width));
  for (int64_t i = 0; i < width; i += float_lanes()) {
    const int64_t left = width - i;
    store(hn::Mul(hn::Mul(load(x + i, left), scale), load(weight + i, left)), y + i, left);
  }
}

/// d_weight += dy * x * scale.
HWY_INLINE void add_weight_gradient(const float* x, FloatVector scale, const float* dy,
                                    int64_t width, float* d_weight) {
  for (int64_t i = 0; i < width; i += float_lanes()) {
    const int64_t left = width - i;
    const FloatVector product = hn::Mul(load(x + i, left), load(dy + i, left));
    store(hn::MulAdd(product, scale, load(d_weight + i, left)), d_weight + i, left);
  }
}

/// Its gradient: with s = inverse_rms, dx = s * w * dy - x * s^3 * mean(x * w * dy);
/// d_weight += dy * x * s, unless it is null. dx may be x. Returns s.
HWY_INLINE float norm_row_backward(const float* x, const float* weight, float epsilon, const float* dy,
                                   int64_t width, Write write, float* dx, float* d_weight) {
  const Floats d;
  const float inverse = inverse_rms(x, epsilon, width);
  const FloatVector scale = hn::Set(d, inverse);
  FloatVector sum = hn::Zero(d);
  for (int64_t i = 0; i < width; i += float_lanes()) {
    const int64_t left = width - i;
    const FloatVector product = hn::Mul(load(x + i, left), load(dy + i, left));
    sum = hn::MulAdd(product, load(weight + i, left), sum);
  }
  if (d_weight != nullptr) add_weight_gradient(x, scale, dy, width, d_weight);
  const float mean = sum_of(sum) / static_cast<float>(width);
  const FloatVector pull = hn::Set(d, mean * inverse * inverse * inverse);
  for (int64_t i = 0; i < width; i += float_lanes()) {
    const int64_t left = width - i;
    const FloatVector straight =
        hn::Mul(hn::Mul(load(weight + i, left), load(dy + i, left)), scale);
    FloatVector gradient = hn::NegMulAdd(load(x + i, left), pull, straight);
    if (write == Write::add) gradient = hn::Add(load(dx + i, left), gradient);
    store(gradient, dx + i, left);
  }
  return inverse;
}

}  // namespace ringlet::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
