#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "kernels/backend.h"
#include "kernels/cuda_module.h"
#include "kernels/trace.h"
#include "tests/support/compare.h"

namespace ringlet::test {

using Floats = std::vector<float>;
using Doubles = std::vector<double>;

enum class DeviceKind : uint8_t { cpu, cuda };

/// What a test runs on: a device, what activations are stored as, which kernels compute attention.
struct Setting {
  DeviceKind device = DeviceKind::cpu;
  Dtype dtype = Dtype::f32;
  CudaAttention attention = CudaAttention::automatic;
};

/// "cuda_bf16_mma".
std::string text_of(const Setting& setting);
inline std::string setting_name(const testing::TestParamInfo<Setting>& info) { return text_of(info.param); }
inline void PrintTo(const Setting& setting, std::ostream* out) { *out << text_of(setting); }

/// Each device in f32 and bf16.
std::vector<Setting> every_device();
/// Each device and dtype with every kernel of attention that serves it.
std::vector<Setting> every_attention();

/// A test of operations that runs once for each setting; by name it is skipped where there is no such device.
///
/// All tensors stand between guard bands of NaN: what is read beyond a tensor shows in the result, what is
/// written there shows when the test ends.
class DeviceTest : public testing::TestWithParam<Setting> {
 protected:
  void SetUp() override;
  void TearDown() override;

  Backend& device() { return *device_; }
  Dtype dtype() const { return GetParam().dtype; }
  bool on_cuda() const { return GetParam().device == DeviceKind::cuda; }
  bool in_bf16() const { return dtype() == Dtype::bf16; }

  /// Normal numbers times `scale`, other ones at each call (and for each RINGLET_TEST_SEED).
  Floats random_floats(int64_t count, double scale = 1);
  /// The same, as activations are stored: rounded to bf16 where that is the dtype.
  Floats random_activations(int64_t count, double scale = 1);
  std::vector<int32_t> random_integers(int64_t count, int64_t below);

  /// Activations, in the setting's dtype.
  Tensor put(const Floats& values, Shape shape) { return put_as(dtype(), values, shape); }
  Tensor put_f32(const Floats& values, Shape shape) { return put_as(Dtype::f32, values, shape); }
  Tensor put_as(Dtype dtype, const Floats& values, Shape shape);
  Tensor put_integers(const std::vector<int32_t>& values);
  Tensor put_positions(const std::vector<int64_t>& values);

  /// Tensors in which every element is NaN.
  Tensor poisoned(Shape shape) { return poisoned_as(dtype(), shape); }
  Tensor poisoned_f32(Shape shape) { return poisoned_as(Dtype::f32, shape); }
  Tensor poisoned_as(Dtype dtype, Shape shape);

  /// Values of a contiguous tensor of f32 or bf16. Waits.
  Floats get(const Tensor& tensor);
  /// The bits of a contiguous tensor. Waits.
  std::vector<std::byte> bits(const Tensor& tensor);

  /// Looks at the guard bands and gives all memory back, for tests of many cases.
  void next_case();

 private:
  std::vector<Tensor> guards_;
  std::unique_ptr<Trace> trace_ = std::make_unique<Trace>();
  std::unique_ptr<Backend> device_;
  Arena::Mark start_ = 0;
  uint64_t calls_ = 0;
};

inline Doubles widened(const Floats& values) { return {values.begin(), values.end()}; }

/// Fails unless |actual - expected| is at most `tolerance`, relative, over all in L2. Beside it, since a
/// large tensor hides one bad row: every row (of row_size) at most twice that, relative to its own length
/// plus the usual length of a row; every element at most four times that, relative to the largest. Where all
/// of expected is zero, these two alone, absolute. NaN fails.
void expect_close(const Floats& actual, const Doubles& expected, int64_t row_size, double tolerance,
                  const char* what);

/// What was computed in f32 and rounded once to `dtype`: every element to half a unit in the last place of
/// bf16, or to the tolerance for f32; beside it that tolerance of the largest element, for sums that cancel.
void expect_rounded(const Floats& actual, const Doubles& expected, Dtype dtype, const char* what,
                    double f32_tolerance = kOutputTolerance);

/// -infinity must stand in the same places; the rest is compared in L2.
void expect_lse(const Floats& actual, const Doubles& expected, double tolerance);

}  // namespace ringlet::test
