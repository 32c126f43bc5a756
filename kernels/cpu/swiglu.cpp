#include "kernels/cpu/swiglu.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/swiglu.cpp"
#include <hwy/foreach_target.h>

#include "kernels/cpu/lanes.h"

HWY_BEFORE_NAMESPACE();
namespace ringlet::cpu::HWY_NAMESPACE {

void swiglu_row(const float* gate, const float* up, int64_t width, float* y) {
  for (int64_t i = 0; i < width; i += float_lanes()) {
    const int64_t left = width - i;
    const FloatVector g = load(gate + i, left);
    store(hn::Mul(hn::Mul(g, sigmoid(g)), load(up + i, left)), y + i, left);
  }
}

/// silu'(g) = s + g * s * (1 - s) with s = sigmoid(g).
void swiglu_row_backward(const float* gate_up, const float* dy, int64_t width, float* d_gate_up) {
  const FloatVector one = hn::Set(Floats(), 1.0f);
  for (int64_t i = 0; i < width; i += float_lanes()) {
    const int64_t left = width - i;
    const FloatVector gate = load(gate_up + i, left), up = load(gate_up + width + i, left);
    const FloatVector gradient = load(dy + i, left);
    const FloatVector s = sigmoid(gate), silu = hn::Mul(gate, s);
    const FloatVector slope = hn::MulAdd(silu, hn::Sub(one, s), s);
    store(hn::Mul(hn::Mul(gradient, up), slope), d_gate_up + i, left);
    store(hn::Mul(gradient, silu), d_gate_up + width + i, left);
  }
}

}  // namespace ringlet::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace ringlet::cpu {

HWY_EXPORT(swiglu_row);
HWY_EXPORT(swiglu_row_backward);

void swiglu_forward(const Tensor& gate_up, const Tensor& y) {
  const int64_t width = y.shape[1];
  for (int64_t row = 0; row < y.rows(); ++row) {
    const float* const gate = gate_up.row<float>(row);
    HWY_DYNAMIC_DISPATCH(swiglu_row)(gate, gate + width, width, y.row<float>(row));
  }
}

void swiglu_backward(const Tensor& gate_up, const Tensor& dy, const Tensor& d_gate_up) {
  for (int64_t row = 0; row < dy.rows(); ++row) {
    HWY_DYNAMIC_DISPATCH(swiglu_row_backward)
    (gate_up.row<float>(row), dy.row<float>(row), dy.shape[1], d_gate_up.row<float>(row));
  }
}

}  // namespace ringlet::cpu
#endif
