#include "kernels/cpu/elementwise.h"

#include <algorithm>
#include <cstring>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/elementwise.cpp"
#include <hwy/foreach_target.h>

#include "kernels/cpu/lanes.h"

HWY_BEFORE_NAMESPACE();
namespace ringlet::cpu::HWY_NAMESPACE {

void add_floats(const float* from, float* to, int64_t size) {
  for (int64_t i = 0; i < size; i += float_lanes()) {
    store(hn::Add(load(to + i, size - i), load(from + i, size - i)), to + i, size - i);
  }
}

}  // namespace ringlet::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace ringlet::cpu {

HWY_EXPORT(add_floats);

void fill(float value, const Tensor& to) { std::ranges::fill(to.as<float>(), value); }

void copy(const Tensor& from, const Tensor& to) {
  if (from.bytes() > 0) std::memcpy(to.data, from.data, from.bytes());
}

void add(const Tensor& from, const Tensor& to) {
  HWY_DYNAMIC_DISPATCH(add_floats)(from.as<float>().data(), to.as<float>().data(), to.size());
}

void copy_rows(const Tensor& from, int64_t first_row, const Tensor& to) {
  const int64_t element = element_bytes(from.dtype), block = from.row_size() * element;
  if (block == 0) return;
  for (int64_t i = 0; i < from.rows(); ++i) {
    std::memcpy(to.data + (i * to.row_stride + first_row * from.shape[2]) * element,
                from.data + i * from.row_stride * element, block);
  }
}

}  // namespace ringlet::cpu
#endif
