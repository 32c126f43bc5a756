// What a balanced layout is worth: ring attention alone, forward and backward, zigzag and
// contiguous by turns. Two ranks on two cores: the time; four: how unevenly the ranks work
// (processor time of each, since they share the cores). A JSON object a line, for speed_tables.py.
#include <fmt/format.h>
#include <time.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <memory>
#include <numeric>
#include <vector>

#include "kernels/comm/threads.h"
#include "kernels/cpu/cpu_backend.h"
#include "model/ring_attention.h"
#include "train/quantile.h"

namespace ringlet::bench {
namespace {

constexpr HeadShape kShape{8, 8, 32};
constexpr int kRepeats = 5;

double thread_seconds() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return double(now.tv_sec) + 1e-9 * double(now.tv_nsec);
}

/// One rank's part of a layer of attention over the whole window.
class Rank {
 public:
  Rank(RankContext context, const SequenceLayout& layout)
      : tokens_(size_t(layout.rows(context.ring.rank())), 0),
        step_(context, {}, Pass::training, layout, mask_, 1e4, kShape.head_dim, tokens_, tokens_) {
    const int64_t rows = step_.rows();
    q_ = filled({kShape.heads, rows, kShape.head_dim, 1});
    kv_ = filled({2 * kShape.kv_heads * rows * kShape.head_dim, 1, 1, 1});
    output_ = filled({rows, kShape.q_width(), 1, 1});
    d_output_ = filled(output_.shape);
    lse_ = filled({kShape.heads, rows, 1, 1});
    delta_ = filled(lse_.shape);
    dq_ = filled(q_.shape);
    dkv_ = filled(kv_.shape);
  }

  void run() {
    ring_attention_forward(step_, kShape, q_, kv_, output_, lse_);
    step_.device.attention_delta(kShape, output_, d_output_, delta_);
    ring_attention_backward(step_, kShape, q_, kv_, {d_output_, lse_, delta_}, dq_, dkv_);
    step_.device.synchronize();
  }

 private:
  Tensor filled(Shape shape) {
    const Tensor tensor = step_.arena().allocate("bench", Dtype::f32, shape);
    step_.device.fill(0.01f, tensor);
    return tensor;
  }
  std::vector<int32_t> tokens_;
  const Mask mask_;
  Step step_;
  Tensor q_, kv_, output_, d_output_, lse_, delta_, dq_, dkv_;
};

/// What one layout took, repeat by repeat: the time of the whole ring, and the largest over the
/// mean of its ranks' processor times.
struct Timing {
  std::vector<double> seconds, largest_over_mean;
};

void measure_ring(int ranks, int64_t length) {
  constexpr std::array kLayouts{Layout::zigzag, Layout::contiguous};
  std::array<Timing, kLayouts.size()> timings;
  std::vector<double> busy(size_t(ranks), 0);  // of the repeat in hand
  run_ranks({ranks, std::chrono::minutes(10)}, [&](Comm& ring, Trace& trace) {
    const std::unique_ptr<Backend> device = make_cpu_backend(int64_t{1} << 36, trace, 1);
    std::array<SequenceLayout, kLayouts.size()> layouts;
    std::vector<std::unique_ptr<Rank>> parts;
    for (size_t i = 0; i < kLayouts.size(); ++i) {
      layouts[i] = make_layout(kLayouts[i], length, ranks);
      parts.push_back(std::make_unique<Rank>(RankContext{*device, ring, trace}, layouts[i]));
    }
    for (int repeat = 0; repeat <= kRepeats; ++repeat) {  // the first one touches memory
      for (size_t i = 0; i < kLayouts.size(); ++i) {
        ring.barrier();
        const auto start = std::chrono::steady_clock::now();
        const double before = thread_seconds();
        parts[i]->run();
        busy[size_t(ring.rank())] = thread_seconds() - before;
        ring.barrier();
        if (ring.rank() != 0 || repeat == 0) continue;
        const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
        const double sum = std::accumulate(busy.begin(), busy.end(), 0.0);
        timings[i].seconds.push_back(took.count());
        timings[i].largest_over_mean.push_back(*std::ranges::max_element(busy) * ranks / sum);
      }
    }
  });
  for (size_t i = 0; i < kLayouts.size(); ++i) {
    fmt::print(
        R"({{"ranks": {}, "length": {}, "layout": "{}", "seconds": {:.4f}, "largest_over_mean": {:.4f}}})"
        "\n",
        ranks, length, name_of(kLayouts[i]), median(timings[i].seconds),
        median(timings[i].largest_over_mean));
  }
}

}  // namespace
}  // namespace ringlet::bench

int main() {
  ringlet::bench::measure_ring(2, 16384);
  ringlet::bench::measure_ring(4, 8192);
}
