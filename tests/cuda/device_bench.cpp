#include "tests/cuda/device_bench.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>

#include "kernels/cpu/cpu_backend.h"
#include "kernels/random.h"
#include "tests/support/module_under_test.h"

namespace ringlet::test {
namespace {

constexpr int64_t kArenaBytes = int64_t{1} << 30;
constexpr int64_t kGuardBytes = Arena::kAlignment;

/// The module, and its first GPU.
struct Gpu {
  const CudaInterface* interface = nullptr;
  int32_t compute_capability = 0;
  std::string trouble;  // empty where there is a GPU
};

Gpu find_gpu() {
  const CudaModule module = module_under_test();
  if (module.interface == nullptr) return {nullptr, 0, module.trouble};
  const CudaMachine machine = module.interface->examine();
  if (!machine.trouble.empty()) return {nullptr, 0, machine.trouble};
  if (module.interface->make_backend == nullptr) return {nullptr, 0, "the module has no backend"};
  const CudaDevice& first = machine.devices.front();
  return {module.interface, first.compute_capability, first.trouble};
}

const Gpu& gpu() {
  static const Gpu found = find_gpu();
  return found;
}

const char* name_of(CudaAttention attention) {
  switch (attention) {
    case CudaAttention::automatic:
      return "";
    case CudaAttention::plain:
      return "_plain";
    case CudaAttention::mma:
      return "_mma";
    case CudaAttention::wgmma:
      return "_wgmma";
  }
  return "?";
}

uint64_t chosen_seed() {
  const char* const text = std::getenv("RINGLET_TEST_SEED");
  return text != nullptr ? std::strtoull(text, nullptr, 10) : 1;
}

/// Length of the differences and of the expected values in [first, first + count).
struct Lengths {
  double difference = 0, expected = 0;
};
Lengths lengths(const Floats& actual, const Doubles& expected, size_t first, size_t count) {
  Lengths sum;
  for (size_t i = first; i < first + count; ++i) {
    const double d = double(actual[i]) - expected[i];
    sum.difference += d * d;
    sum.expected += expected[i] * expected[i];
  }
  return {std::sqrt(sum.difference), std::sqrt(sum.expected)};
}

double largest(const Doubles& values) {
  double largest = 0;
  for (const double value : values) largest = std::max(largest, std::abs(value));
  return largest;
}

}  // namespace

std::string text_of(const Setting& setting) {
  return std::string(setting.device == DeviceKind::cuda ? "cuda_" : "cpu_") +
         ringlet::name_of(setting.dtype) + name_of(setting.attention);
}

std::vector<Setting> every_device() {
  return {{DeviceKind::cpu, Dtype::f32},
          {DeviceKind::cpu, Dtype::bf16},
          {DeviceKind::cuda, Dtype::f32},
          {DeviceKind::cuda, Dtype::bf16}};
}

std::vector<Setting> every_attention() {
  return {{DeviceKind::cpu, Dtype::f32},
          {DeviceKind::cpu, Dtype::bf16},
          {DeviceKind::cuda, Dtype::f32, CudaAttention::plain},
          {DeviceKind::cuda, Dtype::bf16, CudaAttention::plain},
          {DeviceKind::cuda, Dtype::bf16, CudaAttention::mma},
          {DeviceKind::cuda, Dtype::bf16, CudaAttention::wgmma}};
}

void DeviceTest::SetUp() {
  if (!on_cuda()) {
    device_ = make_cpu_backend(kArenaBytes, *trace_);
    start_ = device_->arena().mark();
    return;
  }
  if (!gpu().trouble.empty()) GTEST_SKIP() << "no CUDA device: " << gpu().trouble;
  if (GetParam().attention == CudaAttention::wgmma && gpu().compute_capability != 90) {
    GTEST_SKIP() << "no wgmma on this GPU: compute capability " << gpu().compute_capability;
  }
  device_ = gpu().interface->make_backend(
      {.device = 0, .arena_bytes = kArenaBytes, .attention = GetParam().attention}, *trace_);
  start_ = device_->arena().mark();
}

void DeviceTest::TearDown() {
  if (device_ != nullptr) next_case();
}

Floats DeviceTest::random_floats(int64_t count, double scale) {
  const CounterRandom random(chosen_seed(), hash_name("device tests") + ++calls_);
  Floats values(count);
  for (int64_t i = 0; i < count; ++i) values[i] = float(scale * random.normal(i));
  return values;
}

Floats DeviceTest::random_activations(int64_t count, double scale) {
  Floats values = random_floats(count, scale);
  if (in_bf16()) {
    for (float& value : values) value = to_float(to_bf16(value));
  }
  return values;
}

std::vector<int32_t> DeviceTest::random_integers(int64_t count, int64_t below) {
  const CounterRandom random(chosen_seed(), hash_name("device test integers") + ++calls_);
  std::vector<int32_t> values(count);
  for (int64_t i = 0; i < count; ++i) values[i] = int32_t(random.bits(i) % uint64_t(below));
  return values;
}

Tensor DeviceTest::poisoned_as(Dtype dtype, Shape shape) {
  const int64_t bytes = make_tensor(nullptr, dtype, shape).bytes();
  // Bits of ones are NaN in every dtype of floating point.
  const Tensor whole =
      device_->arena().allocate("test", Dtype::bf16, {(bytes + 2 * kGuardBytes) / 2, 1, 1, 1});
  device_->upload(std::vector<std::byte>(whole.bytes(), std::byte{0xff}), whole);
  guards_.push_back(whole);
  return make_tensor(whole.data + kGuardBytes, dtype, shape);
}

Tensor DeviceTest::put_as(Dtype dtype, const Floats& values, Shape shape) {
  const Tensor tensor = poisoned_as(dtype, shape);
  if (dtype == Dtype::f32) {
    upload<float>(*device_, values, tensor);
    return tensor;
  }
  std::vector<Bf16> rounded;
  for (const float value : values) rounded.push_back(to_bf16(value));
  upload<Bf16>(*device_, rounded, tensor);
  return tensor;
}

Tensor DeviceTest::put_integers(const std::vector<int32_t>& values) {
  const Tensor tensor = poisoned_as(Dtype::i32, {int64_t(values.size()), 1, 1, 1});
  upload<int32_t>(*device_, values, tensor);
  return tensor;
}

Tensor DeviceTest::put_positions(const std::vector<int64_t>& values) {
  const Tensor tensor = poisoned_as(Dtype::i64, {int64_t(values.size()), 1, 1, 1});
  upload<int64_t>(*device_, values, tensor);
  return tensor;
}

Floats DeviceTest::get(const Tensor& tensor) {
  Floats values(tensor.size());
  if (tensor.dtype == Dtype::f32) {
    read<float>(*device_, tensor, values);
    return values;
  }
  std::vector<Bf16> stored(tensor.size());
  read<Bf16>(*device_, tensor, stored);
  std::ranges::transform(stored, values.begin(), to_float);
  return values;
}

std::vector<std::byte> DeviceTest::bits(const Tensor& tensor) {
  std::vector<std::byte> bytes(tensor.bytes());
  device_->read(tensor, bytes);
  return bytes;
}

void DeviceTest::next_case() {
  for (const Tensor& whole : guards_) {
    const auto is_guard = [](std::byte b) { return b == std::byte{0xff}; };
    const Tensor before = whole.slice(0, kGuardBytes / 2),
                 after = whole.slice(whole.rows() - kGuardBytes / 2, kGuardBytes / 2);
    EXPECT_TRUE(std::ranges::all_of(bits(before), is_guard)) << "something was written in front of a tensor";
    EXPECT_TRUE(std::ranges::all_of(bits(after), is_guard)) << "something was written behind a tensor";
  }
  guards_.clear();
  device_->arena().rewind(start_);
}

void expect_close(const Floats& actual, const Doubles& expected, int64_t row_size, double tolerance,
                  const char* what) {
  ASSERT_EQ(actual.size(), expected.size()) << what;
  if (expected.empty()) return;
  const size_t rows = expected.size() / row_size;
  const double all = lengths(actual, expected, 0, expected.size()).expected;
  EXPECT_LE(all > 0 ? error_of(actual, expected) : 0, tolerance) << what;
  const double usual = all > 0 ? all / std::sqrt(double(rows)) : 1;
  for (size_t row = 0; row < rows; ++row) {
    const Lengths of_row = lengths(actual, expected, row * row_size, row_size);
    ASSERT_LE(of_row.difference, 2 * tolerance * (of_row.expected + usual)) << what << ", row " << row;
  }
  const double highest = largest(expected) > 0 ? largest(expected) : 1;
  for (size_t i = 0; i < expected.size(); ++i) {
    ASSERT_LE(std::abs(double(actual[i]) - expected[i]), 4 * tolerance * highest)
        << what << ", element " << i;
  }
}

void expect_rounded(const Floats& actual, const Doubles& expected, Dtype dtype, const char* what,
                    double f32_tolerance) {
  ASSERT_EQ(actual.size(), expected.size()) << what;
  // Half a unit in the last place is at most 2^-8 of the value, and 1.6e-3 in the mean. Cut off instead of
  // rounded it would be twice that.
  const double unit = dtype == Dtype::bf16 ? 0x1.1p-8 : f32_tolerance,
               floor = f32_tolerance * largest(expected);
  for (size_t i = 0; i < expected.size(); ++i) {
    ASSERT_LE(std::abs(double(actual[i]) - expected[i]), unit * std::abs(expected[i]) + floor)
        << what << ", element " << i << " is " << actual[i] << ", not " << expected[i];
  }
  if (expected.size() < 1000) return;  // too few for a mean
  EXPECT_LE(error_of(actual, expected), dtype == Dtype::bf16 ? 2.5e-3 : f32_tolerance) << what;
}

void expect_lse(const Floats& actual, const Doubles& expected, double tolerance) {
  ASSERT_EQ(actual.size(), expected.size());
  Floats finite;
  Doubles finite_expected;
  for (size_t i = 0; i < expected.size(); ++i) {
    if (std::isinf(expected[i])) {
      EXPECT_EQ(double(actual[i]), expected[i]) << "lse " << i;
    } else {
      finite.push_back(actual[i]);
      finite_expected.push_back(expected[i]);
    }
  }
  expect_close(finite, finite_expected, 1, tolerance, "lse");
}

}  // namespace ringlet::test
