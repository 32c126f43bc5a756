#include "kernels/backend.h"

#include <gtest/gtest.h>
#include <hwy/highway.h>

#include <cstdlib>
#include <thread>

#include "kernels/cpu/isa.h"
#include "kernels/dry/dry_backend.h"
#include "tests/support/deferred_backend.h"
#include "tests/support/host_tensor.h"
#include "tests/support/simd_targets.h"

namespace ringlet::test {
namespace {

/// An event that a test decides about.
class ManualTimeline final : public Timeline {
 public:
  bool reached(int64_t) const override { return reached_; }
  void wait(int64_t) override {
    if (failing_) throw Error("the peer is gone");
    while (!reached_) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  Event event() { return {this, 1}; }
  void reach() { reached_ = true; }
  void fail() { failing_ = true; }

 private:
  std::atomic<bool> reached_ = false, failing_ = false;
};

class MemoryOperationsTest : public SimdTargetTest {};
INSTANTIATE_TEST_SUITE_P(Simd, MemoryOperationsTest, each_simd_target(), simd_target_name);

TEST_P(MemoryOperationsTest, FillCopyAndAddTouchExactlyTheirTensor) {
  Bench bench;
  for (const int64_t size : {0, 1, 7, 63, 64, 65, 1009}) {
    const auto values = random_values(3 * size, 1), more = random_values(size, 2);
    const Tensor all = bench.put(values, {3, size, 1, 1}), from = bench.put(more, {size, 1, 1, 1});
    const Tensor middle = all.slice(1, 1);
    auto expected = values;
    for (int64_t i = 0; i < size; ++i) expected[size + i] += more[i];
    bench.device->add(from, middle);
    EXPECT_EQ(bench.get(all), expected) << size;
    std::ranges::copy(more, expected.begin() + size);
    bench.device->copy(from, middle);
    EXPECT_EQ(bench.get(all), expected) << size;
    std::fill_n(expected.begin() + size, size, 2.5f);
    bench.device->fill(2.5f, middle);
    EXPECT_EQ(bench.get(all), expected) << size;
  }
}

TEST(BackendTest, CopyKeepsIntegersAndDoubles) {
  Bench bench;
  const std::vector<int64_t> large = {int64_t{1} << 60, -5};
  const Tensor from = bench.put(large, {2, 1, 1, 1}), to = bench.put<int64_t>({0, 0}, {2, 1, 1, 1});
  bench.device->copy(from, to);
  EXPECT_EQ(bench.get<int64_t>(to), large);
}

TEST(BackendTest, CopyRowsAppendsToEveryHead) {
  Bench bench;
  const auto start = random_values(2 * 5 * 3, 1), rows = random_values(2 * 2 * 3, 2);
  const Tensor cache = bench.put(start, {2, 5, 3, 1});
  bench.device->copy_rows(bench.put(rows, {2, 2, 3, 1}), 3, cache);
  auto expected = start;
  for (int64_t head = 0; head < 2; ++head) {
    std::copy_n(rows.begin() + head * 6, 6, expected.begin() + head * 15 + 9);
  }
  EXPECT_EQ(bench.get(cache), expected);
  EXPECT_THROW(bench.device->copy_rows(bench.poisoned({2, 2, 3, 1}), 4, cache), Error);
  EXPECT_THROW(bench.device->copy_rows(bench.poisoned({2, 2, 4, 1}), 0, cache), Error);
}

TEST(BackendTest, WrongSizesAndDtypesThrow) {
  Bench bench;
  const Tensor four = bench.poisoned({4, 1, 1, 1}), five = bench.poisoned({5, 1, 1, 1});
  const Tensor whole = bench.put<int32_t>({1, 2, 3, 4}, {4, 1, 1, 1});
  EXPECT_THROW(bench.device->copy(four, five), Error);
  EXPECT_THROW(bench.device->copy(four, whole), Error);
  EXPECT_THROW(bench.device->add(four, five), Error);
  EXPECT_THROW(bench.device->add(whole, whole), Error);
  EXPECT_THROW(bench.device->fill(0, whole), Error);
  EXPECT_THROW(bench.device->fill(0, Tensor{}), Error);
  EXPECT_THROW(bench.device->fill(0, bench.poisoned({4, 4, 1, 1}).columns(0, 2)), Error);
  std::vector<std::byte> bytes(15);
  EXPECT_THROW(bench.device->upload(bytes, four), Error);
  EXPECT_THROW(bench.device->read(four, bytes), Error);
}

TEST(BackendTest, AShapeErrorNamesOperationTensorAndShapes) {
  Bench bench;
  try {
    bench.device->embedding_forward(bench.put<int32_t>({1}, {1, 1, 1, 1}),
                                    bench.poisoned({7, 8, 1, 1}), bench.poisoned({1, 9, 1, 1}));
    FAIL() << "nothing was thrown";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what())
                  .find("embedding_forward: y is f32 [1, 9, 1, 1], not f32 [1, 8, 1, 1]"),
              std::string::npos)
        << error.what();
  }
}

TEST(BackendTest, ExposedWaitCountsOnlyTimeAsleep) {
  Bench bench;
  bench.device->wait(Event{});
  EXPECT_EQ(bench.trace.exposed_wait().count(), 0);
  ManualTimeline timeline;
  std::thread later([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    timeline.reach();
  });
  bench.device->wait(timeline.event());
  later.join();
  const auto waited = bench.trace.exposed_wait();
  EXPECT_GE(waited, std::chrono::milliseconds(10));
  EXPECT_LE(waited, std::chrono::seconds(10));
  bench.device->wait(timeline.event());
  EXPECT_EQ(bench.trace.exposed_wait(), waited);
}

#ifndef NDEBUG  // kWatchesFlights
TEST(BackendTest, WaitingForAnEventReleasesItsMemoryOnEveryDevice) {
  Trace trace;
  for (const auto& device :
       {make_cpu_backend(1 << 20, trace), make_dry_backend(1 << 20), make_deferred_backend(1 << 20, trace)}) {
    ManualTimeline timeline;
    const Tensor tensor = device->arena().allocate("test", Dtype::f32, {5, 1, 1, 1});
    device->arena().hold(tensor, timeline.event());
    timeline.reach();
    device->synchronize();
    EXPECT_THROW(device->arena().rewind(0), Error);
    device->wait(timeline.event());
    EXPECT_NO_THROW(device->arena().rewind(0));
    device->synchronize();
  }
}
#endif

TEST(HostMemoryTest, IsZeroAndOnlyWhatIsTouchedIsTaken) {
  const HostMemory memory(int64_t{1} << 40);
  EXPECT_EQ(memory.bytes(), int64_t{1} << 40);
  EXPECT_EQ(memory.data()[int64_t{1} << 39], std::byte{0});
  memory.data()[(int64_t{1} << 40) - 1] = std::byte{7};
  EXPECT_EQ(memory.data()[(int64_t{1} << 40) - 1], std::byte{7});
  EXPECT_NO_THROW(HostMemory(0));
}

TEST(HostMemoryTest, MoreThanTheAddressSpaceIsAnErrorWithAdvice) {
  try {
    const HostMemory memory(int64_t{1} << 60);
    FAIL() << "nothing was thrown";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("1152921504606846976 bytes"), std::string::npos);
    EXPECT_FALSE(error.advice.empty());
  }
}

/// Begins with the best target, whatever RINGLET_ISA says, and leaves what it says.
class IsaTest : public testing::Test {
 protected:
  void SetUp() override {
    cpu::choose_isa_once();
    cpu::choose_isa("");
  }
  void TearDown() override {
    hwy::SetSupportedTargetsForTest(0);
    const char* const word = std::getenv("RINGLET_ISA");
    cpu::choose_isa(word != nullptr ? word : "");
  }
};

TEST_F(IsaTest, AWordForcesItsTarget) {
  const std::string best = cpu_isa_name();
  cpu::choose_isa("portable");
  EXPECT_STREQ(cpu_isa_name(), hwy::TargetName(HWY_STATIC_TARGET));
#if HWY_ARCH_X86
  EXPECT_NE(std::string_view(cpu_isa_warning()).find("slower"), std::string_view::npos);
  if (best == "AVX-512" || best == "AVX2") {
    cpu::choose_isa("avx2");
    EXPECT_STREQ(cpu_isa_name(), "AVX2");
    EXPECT_EQ(std::string_view(cpu_isa_warning()).empty(), best == "AVX2");
    cpu::choose_isa("");
    EXPECT_STREQ(cpu_isa_warning(), "");
  }
#endif
  cpu::choose_isa("");
  EXPECT_EQ(cpu_isa_name(), best);
}

TEST_F(IsaTest, AnUnknownWordIsAUsageErrorThatListsTheWords) {
  try {
    cpu::choose_isa("avx1024");
    FAIL() << "nothing was thrown";
  } catch (const UsageError& error) {
    EXPECT_NE(std::string(error.what()).find("avx1024"), std::string::npos);
    EXPECT_NE(error.advice.find("avx512, avx2 or portable"), std::string::npos);
  }
}

TEST_F(IsaTest, WhatTheProcessorLacksIsAUsageError) {
  hwy::SetSupportedTargetsForTest(HWY_STATIC_TARGET);
  EXPECT_THROW(cpu::choose_isa("avx512"), UsageError);
}

TEST(DeferredBackendTest, OperationsRunInOrderAfterTheHostHasGoneOn) {
  Trace trace;
  ManualTimeline gate;
  const auto device = make_deferred_backend(1 << 20, trace);
  const Tensor x = device->arena().allocate("test", Dtype::f32, {65, 1, 1, 1});
  const Tensor sum = device->arena().allocate("test", Dtype::f32, {65, 1, 1, 1});
  device->wait(gate.event());
  device->fill(0, sum);
  std::vector<float> values(65);
  for (int i = 1; i <= 100; ++i) {
    values.assign(65, float(i));  // upload must have taken the values of its call
    upload<float>(*device, values, x);
    device->add(x, sum);
  }
  const Event done = device->record();
  EXPECT_FALSE(done.reached());
  gate.reach();
  done.wait();
  EXPECT_TRUE(done.reached());
  read<float>(*device, sum, values);
  EXPECT_EQ(values, std::vector<float>(65, 5050.0f));
}

TEST(DeferredBackendTest, StructsAreTakenAlong) {
  Trace trace;
  ManualTimeline gate;
  Bench bench;
  const auto device = make_deferred_backend(1 << 20, trace);
  const Tensor late = device->arena().allocate("test", Dtype::f32, {6, 8, 1, 1});
  const Tensor expected = bench.poisoned({6, 8, 1, 1});
  device->wait(gate.event());
  {
    std::vector<Piece> pieces = {{5, 1, 0, 2}, {40, 1, 2, 4}};
    bench.device->rotary_table(pieces, 1e4, expected);
    device->rotary_table(pieces, 1e4, late);
    pieces.assign(2, {0, 1, 0, 1});
  }
  gate.reach();
  std::vector<float> values(48);
  read<float>(*device, late, values);
  EXPECT_EQ(values, bench.get(expected));
}

TEST(DeferredBackendTest, AFailureIsThrownAtEveryHostWaitAndNothingHangs) {
  Trace trace;
  ManualTimeline peer;
  peer.fail();
  const auto device = make_deferred_backend(1 << 20, trace);
  const Tensor x = device->arena().allocate("test", Dtype::f32, {4, 1, 1, 1});
  device->fill(1, x);
  const Event before = device->record();
  device->wait(peer.event());
  device->fill(2, x);
  const Event after = device->record();
  std::vector<float> values(4);
  EXPECT_THROW(device->synchronize(), Error);
  EXPECT_THROW(read<float>(*device, x, values), Error);
  EXPECT_THROW(after.wait(), Error);
  EXPECT_THROW(static_cast<void>(after.reached()), Error);
  EXPECT_TRUE(before.reached());
  device->fill(3, x);
  EXPECT_THROW(device->synchronize(), Error);
}

}  // namespace
}  // namespace ringlet::test
