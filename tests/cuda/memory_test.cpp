#include <algorithm>
#include <atomic>
#include <chrono>
#include <thread>

#include "tests/cuda/device_bench.h"
#include "tests/support/module_under_test.h"

namespace ringlet::test {
namespace {

class DeviceMemoryTest : public DeviceTest {};
INSTANTIATE_TEST_SUITE_P(Devices, DeviceMemoryTest, testing::ValuesIn(every_device()), setting_name);

/// An event of no device that a test decides about.
class HostTimeline final : public Timeline {
 public:
  bool reached(int64_t) const override { return reached_; }
  void wait(int64_t) override {
    while (!reached_) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  void reach() { reached_ = true; }

 private:
  std::atomic<bool> reached_ = false;
};

TEST_P(DeviceMemoryTest, WhatIsUploadedIsRead) {
  for (const int64_t size : {0, 1, 7, 255, 256, 257, 1'000'003}) {
    const Floats values = random_activations(size);
    EXPECT_EQ(get(put(values, {size, 1, 1, 1})), values) << size;
    const std::vector<int32_t> integers = random_integers(size, 1 << 30);
    std::vector<int32_t> back(size);
    read<int32_t>(device(), put_integers(integers), back);
    EXPECT_EQ(back, integers) << size;
    next_case();
  }
}

// The host's bytes may change as soon as the call has returned.
TEST_P(DeviceMemoryTest, UploadHasTakenTheBytesWhenItReturns) {
  const int64_t size = 500'000;
  const Tensor sum = put_f32(Floats(size), {size, 1, 1, 1}), x = poisoned_f32({size, 1, 1, 1});
  Floats values;
  for (int i = 1; i <= 20; ++i) {
    values.assign(size, float(i));
    upload<float>(device(), values, x);
    device().add(x, sum);
  }
  values.assign(size, -1);
  EXPECT_EQ(get(sum), Floats(size, 210.0f));
}

TEST_P(DeviceMemoryTest, FillCopyAndAddTouchExactlyTheirTensor) {
  for (const int64_t size : {0, 1, 7, 63, 64, 65, 1009, 100'003}) {
    const Floats values = random_activations(3 * size), more = random_activations(size);
    const Tensor all = put(values, {3, size, 1, 1}), from = put(more, {size, 1, 1, 1});
    const Tensor middle = all.slice(1, 1);
    Floats expected = values;
    std::ranges::copy(more, expected.begin() + size);
    device().copy(from, middle);
    EXPECT_EQ(get(all), expected) << size;
    std::fill_n(expected.begin() + size, size, 2.5f);
    device().fill(2.5f, middle);
    EXPECT_EQ(get(all), expected) << size;
    if (!in_bf16()) {
      for (int64_t i = 0; i < size; ++i) expected[size + i] += more[i];
      device().add(from, middle);
      EXPECT_EQ(get(all), expected) << size;
    }
    next_case();
  }
}

TEST_P(DeviceMemoryTest, CopyKeepsIntegers) {
  const std::vector<int64_t> large = {int64_t{1} << 60, -5, 3};
  const Tensor to = put_positions({0, 0, 0});
  device().copy(put_positions(large), to);
  std::vector<int64_t> back(3);
  read<int64_t>(device(), to, back);
  EXPECT_EQ(back, large);
}

TEST_P(DeviceMemoryTest, CopyRowsAppendsToEveryHead) {
  for (const auto& [heads, rows, more, width] :
       {std::array<int64_t, 4>{2, 2, 5, 3}, {6, 65, 200, 64}, {4, 1, 9, 128}}) {
    const Floats start = random_activations(heads * more * width),
                 added = random_activations(heads * rows * width);
    const Tensor cache = put(start, {heads, more, width, 1});
    device().copy_rows(put(added, {heads, rows, width, 1}), 3, cache);
    Floats expected = start;
    for (int64_t head = 0; head < heads; ++head) {
      std::copy_n(added.begin() + head * rows * width, rows * width,
                  expected.begin() + (head * more + 3) * width);
    }
    EXPECT_EQ(get(cache), expected);
    next_case();
  }
}

TEST_P(DeviceMemoryTest, AnEventIsReachedWhenTheWorkBeforeItIsDone) {
  const int64_t size = 1 << 20;
  const Tensor x = poisoned_f32({size, 1, 1, 1}), sum = put_f32(Floats(size), {size, 1, 1, 1});
  Event last;
  for (int i = 1; i <= 50; ++i) {
    device().fill(float(i), x);
    device().add(x, sum);
    last = device().record();
    device().wait(last);  // of the queue itself: nothing to wait for
  }
  last.wait();
  EXPECT_TRUE(last.reached());
  const Event after = device().record();
  device().synchronize();
  EXPECT_TRUE(after.reached());
  EXPECT_EQ(get(sum), Floats(size, 1275.0f));
}

TEST_P(DeviceMemoryTest, TheQueueStandsBehindAnEventOfAnother) {
  const Tensor x = poisoned_f32({100, 1, 1, 1});
  HostTimeline gate;
  std::atomic<bool> opened = false;
  std::thread later([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(30));
    opened = true;
    gate.reach();
  });
  device().wait({&gate, 1});
  device().fill(3, x);
  device().record().wait();
  EXPECT_TRUE(opened);
  later.join();
  EXPECT_EQ(get(x), Floats(100, 3.0f));
}

TEST_P(DeviceMemoryTest, MoreThanTheArenaIsAnErrorThatNamesTheRegion) {
  const int64_t capacity = device().arena().capacity_bytes();
  try {
    device().arena().allocate("checkpoints", Dtype::f32, {capacity, 1, 1, 1});
    FAIL() << "nothing was thrown";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("out of memory: 'checkpoints'"), std::string::npos)
        << error.what();
  }
  EXPECT_EQ(get(put({1, 2}, {2, 1, 1, 1})), (Floats{1, 2})) << "the device goes on";
}

TEST_P(DeviceMemoryTest, WrongSizesAndDtypesThrow) {
  const Tensor four = poisoned_f32({4, 1, 1, 1}), five = poisoned_f32({5, 1, 1, 1});
  const Tensor whole = put_integers({1, 2, 3, 4});
  EXPECT_THROW(device().copy(four, five), Error);
  EXPECT_THROW(device().copy(four, whole), Error);
  EXPECT_THROW(device().add(four, five), Error);
  EXPECT_THROW(device().fill(0, whole), Error);
  EXPECT_THROW(device().upload(std::vector<std::byte>(15), four), Error);
  EXPECT_THROW(device().swiglu_forward(four, five), Error);
}

// The memory of one GPU; nothing is broken afterwards.
TEST(CudaArenaTest, MoreMemoryThanTheGpuHasIsAnError) {
  const CudaModule module = module_under_test();
  if (module.interface == nullptr) GTEST_SKIP() << "no CUDA device: " << module.trouble;
  if (const std::string trouble = module.interface->examine().trouble; !trouble.empty()) {
    GTEST_SKIP() << "no CUDA device: " << trouble;
  }
  Trace trace;
  EXPECT_THROW(module.interface->make_backend({.device = 0, .arena_bytes = int64_t{1} << 45}, trace), Error);
  EXPECT_THROW(module.interface->make_backend({.device = 99, .arena_bytes = 1 << 20}, trace), Error);
  const auto device = module.interface->make_backend({.device = 0, .arena_bytes = 1 << 20}, trace);
  device->synchronize();
}

}  // namespace
}  // namespace ringlet::test
