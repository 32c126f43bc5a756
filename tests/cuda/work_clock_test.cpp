// When a GPU did its work, on the host's clock.
#include <gtest/gtest.h>

#include <chrono>

#include "kernels/cuda_module.h"
#include "tests/support/module_under_test.h"

namespace ringlet::test {
namespace {

using std::chrono::steady_clock;

TEST(CudaWorkClockTest, StretchesAreInOrderAndWithinTheHostsTimes) {
  const CudaModule module = module_under_test();
  if (module.interface == nullptr) GTEST_SKIP() << "no CUDA device: " << module.trouble;
  if (const std::string trouble = module.interface->examine().trouble; !trouble.empty()) {
    GTEST_SKIP() << "no CUDA device: " << trouble;
  }
  Trace trace;
  const std::unique_ptr<Backend> device = module.interface->make_backend({.device = 0, .arena_bytes = 256 << 20}, trace);
  const std::unique_ptr<WorkClock> clock = device->make_work_clock();
  ASSERT_NE(clock, nullptr);
  const int64_t size = 16 << 20;
  const Tensor a = device->arena().allocate("a", Dtype::f32, {size, 1, 1, 1}), b = device->arena().allocate("b", Dtype::f32, {size, 1, 1, 1});
  device->fill(1, a);
  device->fill(0, b);
  constexpr auto kSlack = std::chrono::milliseconds(5);  // other processes use the GPU in turn
  for (const int calls : {3, 200, 0, 1}) {  // fewer and more events than before
    clock->take();
    const auto before = steady_clock::now();
    for (int i = 0; i < calls; ++i) {
      clock->begin("add");
      device->add(a, b);
      clock->end();
    }
    const std::vector<WorkClock::Stretch> stretches = clock->take();
    const auto after = steady_clock::now();
    ASSERT_EQ(stretches.size(), size_t(calls));
    auto last = before - kSlack;
    for (const auto& [begin, end] : stretches) {
      EXPECT_GE(begin, last);
      EXPECT_GT(end - begin, std::chrono::microseconds(10));  // 192 MiB to and fro: no memory moves 20 TB/s
      last = end;
    }
    EXPECT_LE(last, after + kSlack);
  }
}

}  // namespace
}  // namespace ringlet::test
