#pragma once

#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <vector>

#include "kernels/cpu/fma_peak.h"

namespace ringlet::bench {

/// Runs what is registered, as the command line says. Returns the exit code.
inline int run_benchmarks(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}

inline double median(std::vector<double> values) {
  std::ranges::sort(values);
  const size_t half = values.size() / 2;
  if (values.empty()) return 0;
  return values.size() % 2 == 1 ? values[half] : (values[half - 1] + values[half]) / 2;
}

/// Times body() once an iteration, between two measurements of the FMA peak. Counters: medians of
/// GFLOP/s, of the peak, and of their ratio (in percent), which is what holds on a machine whose
/// speed changes.
template <class Body>
void measure(benchmark::State& state, int threads, double flops, const Body& body) {
  using Clock = std::chrono::steady_clock;
  std::vector<double> rates, peaks, shares;
  cpu::ThreadTeam team(threads);
  body();  // memory is touched, the threads of the body are awake
  double before = cpu::fma_peak_gflops(team);
  for (auto _ : state) {
    const auto start = Clock::now();
    body();
    const std::chrono::duration<double> seconds = Clock::now() - start;
    const double after = cpu::fma_peak_gflops(team), peak = (before + after) / 2;
    state.SetIterationTime(seconds.count());
    rates.push_back(flops / seconds.count() / 1e9);
    peaks.push_back(peak);
    shares.push_back(100 * rates.back() / peak);
    before = after;
  }
  state.counters["GFLOP/s"] = median(rates);
  state.counters["FMA_peak"] = median(peaks);
  state.counters["%_of_peak"] = median(shares);
}

}  // namespace ringlet::bench
