// Ring attention of a model on one GPU: what eight ranks take beside one call over all of their
// tokens, and what the steps of one rank take alone.
#include "tests/bench/gpu_bench_ring.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <functional>

#include "kernels/comm/threads.h"
#include "tests/bench/gpu_bench_pass.h"

namespace ringlet::bench {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kRing = 8;

/// Bytes of an arena for `rows` rows of a rank or of a single call: all tensors of both passes,
/// ring boxes, and the pool of random numbers.
int64_t arena_bytes_of(const HeadShape& shape, int64_t rows) {
  return rows * shape.q_width() * 64 + (int64_t{128} << 20);
}

struct Size {
  HeadShape shape;
  int64_t rows;  // of a rank
  int repeats;
  CudaAttention attention = CudaAttention::automatic;

  std::string name() const {
    return std::string(attention == CudaAttention::mma ? "mma, " : "") + std::to_string(shape.heads) + " heads of " +
           std::to_string(shape.head_dim) + ", " + thousands(rows) + " a rank";
  }
};

/// The kernels that a GPU gets by itself; those of mma.sync at the shortest size too.
std::vector<Size> sizes_of(Extent extent) {
  std::vector<Size> sizes;
  for (const HeadShape& shape : {HeadShape{6, 6, 128}, {12, 12, 64}}) {
    sizes.push_back({shape, 8192, 9});
    sizes.push_back({shape, 8192, 5, CudaAttention::mma});
    if (extent == Extent::full) sizes.push_back({shape, 32768, 3});
  }
  return sizes;
}

Times time_one_call(const CudaInterface& interface, const Size& size) {
  const int64_t total = kRing * size.rows;
  Gpu gpu(interface, size.attention, arena_bytes_of(size.shape, total));
  const bench::Pass pass = make_pass(gpu, size.shape, {{0, 1, 0, total}}, {{0, 1, 0, total}});
  const auto once = [&](void (bench::Pass::*run)(Gpu&) const) {
    const auto start = Clock::now();
    (pass.*run)(gpu);
    gpu->synchronize();
    return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
  };
  std::vector<double> forward, backward;
  for (int repeat = 0; repeat <= size.repeats; ++repeat) {  // the first one warms up
    const double forward_ms = once(&bench::Pass::whole_forward),
                 backward_ms = once(&bench::Pass::whole_backward);
    if (repeat == 0) continue;
    forward.push_back(forward_ms);
    backward.push_back(backward_ms);
  }
  return {median(forward), median(backward)};
}

/// When each rank began and ended what all began together.
struct Lap {
  std::array<Clock::time_point, kRing> begin, end;

  template <class Body>
  void measure(Comm& ring, Backend& device, const Body& body) {
    device.synchronize();
    ring.barrier();
    begin[size_t(ring.rank())] = Clock::now();
    body();
    device.synchronize();
    end[size_t(ring.rank())] = Clock::now();
  }
  double ms() const {
    return std::chrono::duration<double, std::milli>(std::ranges::max(end) -
                                                     std::ranges::min(begin))
        .count();
  }
};

double median_of(const std::vector<Lap>& laps) {
  std::vector<double> times;
  for (size_t i = 1; i < laps.size(); ++i) times.push_back(laps[i].ms());  // the first one warms up
  return median(times);
}

using Work = std::function<void()>;
/// Laps of a rank's forward and backward pass on its device, in step with the other ranks'.
using MeasureLaps = std::function<void(Backend& device, const Work& forward, const Work& backward)>;

/// Of passes that all ranks make at once: rank_main makes its rank and hands its passes to `measure`.
Times time_ranks(RankMemory& memory, const Size& size,
                 const std::function<void(Comm& ring, Trace& trace, const MeasureLaps& measure)>& rank_main) {
  std::vector<Lap> forward_laps(size_t(size.repeats) + 1), backward_laps(size_t(size.repeats) + 1);
  ThreadsOptions options;
  options.ranks = kRing;
  options.timeout = std::chrono::seconds(20);
  options.memory = &memory;
  run_ranks(options, [&](Comm& ring, Trace& trace) {
    rank_main(ring, trace, [&](Backend& device, const Work& forward, const Work& backward) {
      for (size_t repeat = 0; repeat < forward_laps.size(); ++repeat) {
        forward_laps[repeat].measure(ring, device, forward);
        backward_laps[repeat].measure(ring, device, backward);
      }
      ring.barrier();
    });
  });
  return {median_of(forward_laps), median_of(backward_laps)};
}

Times time_ring(const CudaInterface& interface, RankMemory& memory, const Size& size) {
  const SequenceLayout layout = make_layout(Layout::zigzag, kRing * size.rows, kRing);
  return time_ranks(memory, size, [&](Comm& ring, Trace& trace, const MeasureLaps& measure) {
    RingRank rank(interface, size.shape, layout, ring, trace, size.attention);
    rank.fill_with_random_numbers();
    measure(*rank.gpu, [&] { rank.forward(); }, [&] { rank.backward(); });
  });
}

/// All steps of a rank of a ring, with the keys of the whole ring side by side.
bench::Pass pass_of_rank(Gpu& gpu, const Size& size, const SequenceLayout& layout, int rank) {
  std::vector<Piece> keys;
  for (int hop = kRing; hop-- > 0;) {  // steps run from the last piece to the first: its own come first
    for (const Piece& piece : layout.ranks[size_t((rank + kRing - hop) % kRing)]) keys.push_back(piece);
  }
  return make_pass(gpu, size.shape, layout.ranks[size_t(rank)], keys);
}

/// All ranks at once, no messages: what the steps cost a ring, but for what it moves.
Times time_steps_side_by_side(const CudaInterface& interface, RankMemory& memory, const Size& size) {
  const SequenceLayout layout = make_layout(Layout::zigzag, kRing * size.rows, kRing);
  return time_ranks(memory, size, [&](Comm& ring, Trace& trace, const MeasureLaps& measure) {
    Gpu gpu(interface,
            {.arena_bytes = arena_bytes_of(size.shape, (kRing + 1) * size.rows), .attention = size.attention},
            ring.rank(), trace);
    const bench::Pass pass = pass_of_rank(gpu, size, layout, ring.rank());
    measure(*gpu, [&] { pass.whole_forward(gpu); }, [&] { pass.whole_backward(gpu); });
  });
}

/// The slowest of three ranks.
Times time_rank_alone(const CudaInterface& interface, const Size& size) {
  const SequenceLayout layout = make_layout(Layout::zigzag, kRing * size.rows, kRing);
  Gpu gpu(interface, size.attention, arena_bytes_of(size.shape, (kRing + 1) * size.rows));
  Times slowest;
  for (const int rank : {0, 3, 7}) {
    const ArenaScope scope(gpu->arena());
    const Times times = time_steps(gpu, pass_of_rank(gpu, size, layout, rank));
    slowest = {std::max(slowest.forward_ms, times.forward_ms),
               std::max(slowest.backward_ms, times.backward_ms)};
  }
  return slowest;
}

/// In percent.
void add_shares(const std::string& name, const Times& ideal, const Times& times, Report& report) {
  report.add(name + ", forward", times.forward_ms, 100 * ideal.forward_ms / times.forward_ms, "%");
  report.add(name + ", backward", times.backward_ms, 100 * ideal.backward_ms / times.backward_ms,
             "%");
  report.add(name + ", both", times.both_ms(), 100 * ideal.both_ms() / times.both_ms(), "%");
}

void add_one_call(const Size& size, const Times& times, Report& report) {
  const double total = double(kRing * size.rows);
  const double flops = 2 * total * total * double(size.shape.q_width());
  report.add(size.name() + ", one call, forward", times.forward_ms, flops / times.forward_ms / 1e9,
             "TFLOP/s");
  report.add(size.name() + ", one call, backward", times.backward_ms,
             2.5 * flops / times.backward_ms / 1e9, "TFLOP/s");
}

}  // namespace

RingRank::RingRank(const CudaInterface& interface, const HeadShape& head_shape,
                   const SequenceLayout& layout, Comm& ring, Trace& trace, CudaAttention attention)
    : shape(head_shape),
      gpu(interface, {.arena_bytes = arena_bytes_of(shape, layout.max_rows()), .attention = attention},
          ring.rank(), trace),
      step({*gpu, ring, trace}, {}, ringlet::Pass::training, layout, mask, 1e4, shape.head_dim,
           std::vector<int32_t>(size_t(layout.rows(ring.rank()))),
           std::vector<int32_t>(size_t(layout.rows(ring.rank())))) {
  const int64_t rows = step.rows();
  const Shape heads{shape.heads, rows, shape.head_dim, 1}, flat{rows, shape.q_width(), 1, 1};
  const Shape both{2 * shape.kv_heads * shape.head_dim * rows, 1, 1, 1},
      per_row{shape.heads, rows, 1, 1};
  q = gpu.empty(Dtype::bf16, heads), kv = gpu.empty(Dtype::bf16, both);
  output = gpu.empty(Dtype::bf16, flat), d_output = gpu.empty(Dtype::bf16, flat);
  lse = gpu.empty(Dtype::f32, per_row), delta = gpu.empty(Dtype::f32, per_row);
  dq = gpu.zeros(heads), dkv = gpu.empty(Dtype::f32, both);
}

void RingRank::fill_with_random_numbers() {
  for (const Tensor& tensor : {q, kv, d_output}) {
    const ArenaScope scope(gpu->arena());
    gpu->copy(gpu.random(Dtype::bf16, tensor.shape), tensor);
  }
}

void RingRank::forward() { ring_attention_forward(step, shape, q, kv, output, lse); }

void RingRank::backward() {
  gpu->attention_delta(shape, output, d_output, delta);
  ring_attention_backward(step, shape, q, kv, {d_output, lse, delta}, dq, dkv);
}

std::string thousands(int64_t tokens) { return std::to_string(tokens / 1024) + "k"; }

void measure_ring(const CudaInterface& interface, Extent extent, Report& report) {
  report.begin("Ring of 8 ranks on one GPU, zigzag, messages copied on it",
               "bf16, causal; percent: time of one call over all tokens over the time from the "
               "common start of the ranks until the last one is done; forward with start and "
               "finish, backward with delta; bars: 92 % from 8k a rank on, 97 % at 32k");
  const std::unique_ptr<RankMemory> memory = interface.make_rank_memory();
  std::vector<std::pair<Size, Times>> one_calls;
  for (const Size& size : sizes_of(extent)) {
    try {
      const Times one_call = time_one_call(interface, size);
      add_one_call(size, one_call, report);
      one_calls.emplace_back(size, one_call);
      add_shares(size.name() + ", ring", one_call, time_ring(interface, *memory, size), report);
      if (size.rows <= 8192) {  // each rank holds the keys of all
        add_shares(size.name() + ", no messages", one_call, time_steps_side_by_side(interface, *memory, size), report);
      }
    } catch (const std::exception& error) {
      report.skip(size.name(), error.what());
    }
  }
  report.begin("Steps of one of these ranks, alone on the GPU",
               "an eighth of one call over all tokens, in percent of the time of a rank's "
               "steps, no messages; what a step leaves idle another rank would use");
  for (const auto& [size, one_call] : one_calls) {
    try {
      const Times ideal{one_call.forward_ms / kRing, one_call.backward_ms / kRing};
      add_shares(size.name() + ", a rank", ideal, time_rank_alone(interface, size), report);
    } catch (const std::exception& error) {
      report.skip(size.name() + ", a rank", error.what());
    }
  }
}

}  // namespace ringlet::bench
