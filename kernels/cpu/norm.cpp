#include "kernels/cpu/norm.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/norm.cpp"
#include <hwy/foreach_target.h>

#include "kernels/cpu/norm_row.h"

HWY_BEFORE_NAMESPACE();
namespace ringlet::cpu::HWY_NAMESPACE {

void norm_forward(const Tensor& x, const Tensor& weight, float epsilon, const Tensor& y) {
  for (int64_t row = 0; row < x.rows(); ++row) {
    norm_row(x.row<float>(row), weight.row<float>(0), epsilon, x.shape[1], y.row<float>(row));
  }
}

void norm_backward(const Tensor& x, const Tensor& weight, float epsilon, const Tensor& dy,
                   Write write, const Tensor& dx, const Tensor& d_weight, float* scales) {
  for (int64_t row = 0; row < x.rows(); ++row) {
    scales[row] = norm_row_backward(x.row<float>(row), weight.row<float>(0), epsilon, dy.row<float>(row), x.shape[1],
                                    write, dx.row<float>(row), d_weight ? d_weight.row<float>(0) : nullptr);
  }
}

void weight_gradient(const Tensor& x, const float* scales, const Tensor& dy, int64_t first, int64_t count,
                     float* d_weight) {
  for (int64_t row = 0; row < x.rows(); ++row) {
    const FloatVector scale = hn::Set(Floats(), scales[row]);
    add_weight_gradient(x.row<float>(row) + first, scale, dy.row<float>(row) + first, count,
                        d_weight + first);
  }
}

}  // namespace ringlet::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace ringlet::cpu {

HWY_EXPORT(norm_forward);
HWY_EXPORT(norm_backward);
HWY_EXPORT(weight_gradient);

void rms_norm_forward(const Tensor& x, const Tensor& weight, float epsilon, const Tensor& y) {
  HWY_DYNAMIC_DISPATCH(norm_forward)(x, weight, epsilon, y);
}

void rms_norm_backward(const Tensor& x, const Tensor& weight, float epsilon, const Tensor& dy,
                       Write write, const Tensor& dx, const Tensor& d_weight, std::span<float> scales) {
  HWY_DYNAMIC_DISPATCH(norm_backward)(x, weight, epsilon, dy, write, dx, d_weight, scales.data());
}

void rms_norm_weight_gradient(const Tensor& x, std::span<const float> scales, const Tensor& dy, int64_t first,
                              int64_t count, const Tensor& d_weight) {
  HWY_DYNAMIC_DISPATCH(weight_gradient)(x, scales.data(), dy, first, count, d_weight.row<float>(0));
}

}  // namespace ringlet::cpu
#endif
