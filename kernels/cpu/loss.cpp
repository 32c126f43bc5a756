#include "kernels/cpu/loss.h"

#include <algorithm>
#include <cmath>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/loss.cpp"
#include <hwy/foreach_target.h>

#include "kernels/cpu/lanes.h"

HWY_BEFORE_NAMESPACE();
namespace ringlet::cpu::HWY_NAMESPACE {

constexpr float kLowest = -std::numeric_limits<float>::infinity();

float row_maximum(const float* x, int64_t size) {
  const Floats d;
  FloatVector maximum = hn::Set(d, kLowest);
  for (int64_t i = 0; i < size; i += float_lanes()) {
    maximum = hn::Max(maximum, load(x + i, size - i, kLowest));
  }
  return hn::GetLane(hn::MaxOfLanes(d, maximum));
}

/// x = e^(x - maximum); returns the sum. Blocks are summed in double: the error does not grow with
/// the vocabulary.
double exponentiate_row(float* x, int64_t size, float maximum) {
  constexpr int64_t kBlock = 1024;
  const Floats d;
  const FloatVector shift = hn::Set(d, maximum);
  double sum = 0;
  for (int64_t block = 0; block < size; block += kBlock) {
    const int64_t end = HWY_MIN(size, block + kBlock);
    FloatVector partial = hn::Zero(d);
    for (int64_t i = block; i < end; i += float_lanes()) {
      const FloatVector power = exponential(hn::Sub(load(x + i, end - i, kLowest), shift));
      partial = hn::Add(partial, power);
      store(power, x + i, end - i);
    }
    sum += static_cast<double>(sum_of(partial));
  }
  return sum;
}

void scale_row(float* x, int64_t size, float scale) {
  const FloatVector factor = hn::Set(Floats(), scale);
  for (int64_t i = 0; i < size; i += float_lanes()) {
    store(hn::Mul(load(x + i, size - i), factor), x + i, size - i);
  }
}

}  // namespace ringlet::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace ringlet::cpu {

HWY_EXPORT(row_maximum);
HWY_EXPORT(exponentiate_row);
HWY_EXPORT(scale_row);

void cross_entropy(const Tensor& logits, const Tensor& labels, CrossEntropy mode,
                   float gradient_scale, const Tensor& losses) {
  const int64_t vocabulary = logits.shape[1];
  for (int64_t row = 0; row < logits.rows(); ++row) {
    float* const x = logits.row<float>(row);
    const int32_t label = *labels.row<int32_t>(row);
    CHECK(label >= -1 && label < vocabulary, "label ", label,
          " in a vocabulary of ", vocabulary);
    if (label == -1) {
      *losses.row<float>(row) = 0;
      if (mode == CrossEntropy::loss_and_gradient) std::fill_n(x, vocabulary, 0.0f);
      continue;
    }
    const float maximum = HWY_DYNAMIC_DISPATCH(row_maximum)(x, vocabulary);
    const double below = double(maximum) - double(x[label]);
    const double sum = HWY_DYNAMIC_DISPATCH(exponentiate_row)(x, vocabulary, maximum);
    *losses.row<float>(row) = float(below + std::log(sum));
    if (mode == CrossEntropy::loss_only) continue;
    HWY_DYNAMIC_DISPATCH(scale_row)(x, vocabulary, float(gradient_scale / sum));
    x[label] -= gradient_scale;
  }
}

}  // namespace ringlet::cpu
#endif
