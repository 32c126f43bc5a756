#include "kernels/cpu/adamw.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/adamw.cpp"
#include <hwy/foreach_target.h>

#include "kernels/adamw_factors.h"
#include "kernels/cpu/lanes.h"

HWY_BEFORE_NAMESPACE();
namespace ringlet::cpu::HWY_NAMESPACE {

double squares(const float* x, int64_t size) {
  const hn::ScalableTag<double> d;
  const hn::Rebind<float, decltype(d)> narrow;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  auto even = hn::Zero(d), odd = hn::Zero(d);
  int64_t i = 0;
  for (; i + 2 * lanes <= size; i += 2 * lanes) {
    const auto first = hn::PromoteTo(d, hn::LoadU(narrow, x + i));
    const auto second = hn::PromoteTo(d, hn::LoadU(narrow, x + i + lanes));
    even = hn::MulAdd(first, first, even);
    odd = hn::MulAdd(second, second, odd);
  }
  double sum = hn::GetLane(hn::SumOfLanes(d, hn::Add(even, odd)));
  for (; i < size; ++i) sum += static_cast<double>(x[i]) * static_cast<double>(x[i]);
  return sum;
}

void adamw_floats(const AdamWFactors& factors, const float* gradient, float* weights, float* first,
                  float* second, int64_t size) {
  const Floats d;
  for (int64_t i = 0; i < size; i += float_lanes()) {
    const int64_t left = size - i;
    const FloatVector g = hn::Mul(load(gradient + i, left), hn::Set(d, factors.gradient_scale));
    const FloatVector w = load(weights + i, left);
    const FloatVector m = hn::MulAdd(load(first + i, left), hn::Set(d, factors.beta1),
                                     hn::Mul(g, hn::Set(d, factors.rest1)));
    const FloatVector v = hn::MulAdd(load(second + i, left), hn::Set(d, factors.beta2),
                                     hn::Mul(hn::Mul(g, g), hn::Set(d, factors.rest2)));
    const FloatVector root = hn::MulAdd(hn::Sqrt(v), hn::Set(d, factors.moment_scale),
                                        hn::Set(d, factors.epsilon));
    const FloatVector change = hn::MulAdd(w, hn::Set(d, factors.decay),
                                          hn::Div(hn::Mul(m, hn::Set(d, factors.step_size)), root));
    store(hn::Sub(w, change), weights + i, left);
    store(m, first + i, left);
    store(v, second + i, left);
  }
}

}  // namespace ringlet::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace ringlet::cpu {

HWY_EXPORT(squares);

double sum_of_squares(std::span<const float> x) {
  return HWY_DYNAMIC_DISPATCH(squares)(x.data(), int64_t(x.size()));
}

HWY_EXPORT(adamw_floats);

void adamw(const AdamW& settings, const Tensor& gradient, const Tensor& weights,
           const Tensor& first_moment, const Tensor& second_moment) {
  const AdamWFactors factors = factors_of(settings);
  HWY_DYNAMIC_DISPATCH(adamw_floats)
  (factors, gradient.as<float>().data(), weights.as<float>().data(),
   first_moment.as<float>().data(), second_moment.as<float>().data(), weights.size());
}

}  // namespace ringlet::cpu
#endif
