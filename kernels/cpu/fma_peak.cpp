#include "kernels/cpu/fma_peak.h"

#include <atomic>
#include <chrono>

#include "kernels/cpu/isa.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/fma_peak.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace ringlet::cpu::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

/// Twelve chains hide the latency of the multiply-add. Returns the floating-point operations done.
double multiply_add(int64_t rounds, float* result) {
  const hn::ScalableTag<float> d;
  const auto factor = hn::Set(d, 0.999f), term = hn::Set(d, *result);
  // Each chain is another one: a compiler would compute equal ones once.
  const auto start = [&](float at) { return hn::Set(d, *result * at); };
  auto a = start(1), b = start(2), c = start(3), e = start(4), f = start(5), g = start(6);
  auto h = start(7), i = start(8), j = start(9), k = start(10), l = start(11), m = start(12);
  for (int64_t round = 0; round < rounds; ++round) {
    a = hn::MulAdd(a, factor, term), b = hn::MulAdd(b, factor, term),
    c = hn::MulAdd(c, factor, term);
    e = hn::MulAdd(e, factor, term), f = hn::MulAdd(f, factor, term),
    g = hn::MulAdd(g, factor, term);
    h = hn::MulAdd(h, factor, term), i = hn::MulAdd(i, factor, term),
    j = hn::MulAdd(j, factor, term);
    k = hn::MulAdd(k, factor, term), l = hn::MulAdd(l, factor, term),
    m = hn::MulAdd(m, factor, term);
  }
  const auto sum =
      hn::Add(hn::Add(hn::Add(a, b), hn::Add(c, e)), hn::Add(hn::Add(f, g), hn::Add(h, i)));
  *result = hn::GetLane(hn::SumOfLanes(d, hn::Add(sum, hn::Add(hn::Add(j, k), hn::Add(l, m)))));
  return 2.0 * 12 * double(rounds) * double(hn::Lanes(d));
}

}  // namespace ringlet::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace ringlet::cpu {

HWY_EXPORT(multiply_add);

double fma_peak_gflops(ThreadTeam& team) {
  choose_isa_once();  // the kernels' own
  constexpr int64_t kRounds = 500'000;
  const int threads = team.size();
  std::atomic<double> gflops = 0;
  std::atomic<int> started = 0;
  team.run(threads, [&](int64_t) {
    using Clock = std::chrono::steady_clock;
    ++started;  // all at once, or the threads would not compete for what they share
    for (const auto begin = Clock::now();
         started < threads && Clock::now() - begin < std::chrono::milliseconds(1);) {
    }
    float value = 1e-3f;
    const auto start = Clock::now();
    const double done = HWY_DYNAMIC_DISPATCH(multiply_add)(kRounds, &value);
    const std::chrono::duration<double> seconds = Clock::now() - start;
    gflops.fetch_add((value < 1e30f ? done : 0) / seconds.count() / 1e9);
  });
  return gflops;
}

}  // namespace ringlet::cpu
#endif
