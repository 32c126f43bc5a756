// The operations of the CPU backend, each beside the FMA peak of the moment: GFLOP/s and share of
// peak. Matrix products also through OpenBLAS, where it is installed.
#include <benchmark/benchmark.h>

#include "kernels/cpu/cpu_backend.h"
#include "kernels/random.h"
#include "tests/bench/measure.h"

#ifdef RINGLET_BENCH_OPENBLAS
#include <cblas.h>
#endif

namespace ringlet::bench {
namespace {

/// A device with tensors of random values.
struct Device {
  explicit Device(int threads) : backend(make_cpu_backend(int64_t{1} << 34, trace, threads)) {}
  Tensor zeros(Shape shape) {
    const Tensor tensor = backend->arena().allocate("bench", Dtype::f32, shape);
    backend->fill(0, tensor);
    return tensor;
  }
  Tensor random(Shape shape) {
    const Tensor tensor = zeros(shape);
    const CounterRandom source(1, hash_name("bench"));
    // The pattern repeats: making the numbers would take longer than the benchmark.
    std::vector<float> some(4099);
    for (size_t i = 0; i < some.size(); ++i) some[i] = float(source.normal(i));
    const std::span<float> values = tensor.as<float>();
    for (size_t i = 0; i < values.size(); ++i) values[i] = some[i % some.size()];
    return tensor;
  }
  Trace trace;
  std::unique_ptr<Backend> backend;
};

/// Causal attention of one rank over a whole window.
struct Attention {
  Attention(Device& on, int64_t length, const HeadShape& heads) : device(on), shape(heads) {
    q = device.random({shape.heads, length, shape.head_dim, 1});
    kv = device.random({2, shape.kv_heads, length, shape.head_dim});
    d_output = device.random({length, shape.q_width(), 1, 1});
    dq = device.zeros(q.shape);
    dkv = device.zeros(kv.shape);
    state = {device.zeros(q.shape), device.zeros({shape.heads, length, 1, 1}),
             device.zeros({shape.heads, length, 1, 1})};
    output = device.zeros(d_output.shape);
    lse = device.zeros(state.sum.shape);
    delta = device.zeros(state.sum.shape);
    const Tensor visible = device.backend->arena().allocate("bench", Dtype::i64, {length, 1, 1, 1});
    std::ranges::fill(visible.as<int64_t>(), 0);
    const Piece all{0, 1, 0, length};
    step = {shape, all, all, visible};
  }
  void forward() {
    device.backend->attention_start(state);
    device.backend->attention_forward(step, q, kv, state);
    device.backend->attention_finish(shape, state, output, lse);
  }
  void backward() {
    device.backend->attention_delta(shape, output, d_output, delta);
    device.backend->attention_backward(step, q, kv, {d_output, lse, delta}, dq, Write::add, dkv);
  }
  double forward_flops() const {
    const double length = double(q.shape[1]);
    return 2 * double(shape.q_width()) * length * length;
  }

  Device& device;
  const HeadShape shape;
  AttentionStep step;
  AttentionState state;
  Tensor q, kv, d_output, dq, dkv, output, lse, delta;
};

void attention_forward(benchmark::State& state) {
  const auto threads = int(state.range(0));
  Device device(threads);
  Attention attention(device, state.range(1), {8, 8, state.range(2)});
  measure(state, threads, attention.forward_flops(), [&] { attention.forward(); });
}

void attention_backward(benchmark::State& state) {
  const auto threads = int(state.range(0));
  Device device(threads);
  Attention attention(device, state.range(1), {8, 8, state.range(2)});
  attention.forward();
  measure(state, threads, 2.5 * attention.forward_flops(), [&] { attention.backward(); });
}

/// A linear layer of a training step: y = x W^T, dx = dy W, dW += dy^T x.
enum class Linear : uint8_t { forward, input_gradient, weight_gradient };
enum class By : uint8_t { ringlet, openblas };

struct LinearLayer {
  Tensor x, weight, y;

  void run(Backend& backend, Linear pass) const {
    using enum Transpose;
    switch (pass) {
      case Linear::forward:
        return backend.matmul(x, no, weight, yes, Write::set, y);
      case Linear::input_gradient:
        return backend.matmul(y, no, weight, no, Write::set, x);
      case Linear::weight_gradient:
        return backend.matmul(y, yes, x, no, Write::add, weight);
    }
  }

#ifdef RINGLET_BENCH_OPENBLAS
  void run_openblas(Linear pass) const {
    const auto rows = int(x.shape[0]), in = int(x.shape[1]), out = int(y.shape[1]);
    float *const a = x.row<float>(0), *const w = weight.row<float>(0), *const b = y.row<float>(0);
    switch (pass) {
      case Linear::forward:
        return cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, rows, out, in, 1, a, in, w, in,
                           0, b, out);
      case Linear::input_gradient:
        return cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, rows, in, out, 1, b, out, w,
                           in, 0, a, in);
      case Linear::weight_gradient:
        return cblas_sgemm(CblasRowMajor, CblasTrans, CblasNoTrans, out, in, rows, 1, b, out, a, in,
                           1, w, in);
    }
  }
#endif
};

void linear(benchmark::State& state, Linear pass, [[maybe_unused]] By by) {
  const auto threads = int(state.range(0));
  const int64_t rows = state.range(1), in = state.range(2), out = state.range(3);
  Device device(threads);
  const LinearLayer layer{device.random({rows, in, 1, 1}), device.random({out, in, 1, 1}),
                          device.random({rows, out, 1, 1})};
#ifdef RINGLET_BENCH_OPENBLAS
  openblas_set_num_threads(threads);
#endif
  const auto repeats = int(std::max(1.0, 2e9 / (2.0 * double(rows * in * out))));
  measure(state, threads, 2.0 * double(rows * in * out) * repeats, [&] {
    for (int i = 0; i < repeats; ++i) {
#ifdef RINGLET_BENCH_OPENBLAS
      if (by == By::openblas) {
        layer.run_openblas(pass);
        continue;
      }
#endif
      layer.run(*device.backend, pass);
    }
  });
}

/// What is no product: as elements and bytes a second, beside the FMA peak; `floats` are read or written for each
/// element.
template <class Body>
void measure_elements(benchmark::State& state, int64_t elements, int64_t floats, const Body& body) {
  body();
  for (auto _ : state) {
    const auto start = std::chrono::steady_clock::now();
    body();
    state.SetIterationTime(
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  cpu::ThreadTeam team(int(state.range(0)));
  state.counters["FMA_peak"] = cpu::fma_peak_gflops(team);
  state.SetItemsProcessed(state.iterations() * elements);
  state.SetBytesProcessed(state.iterations() * elements * floats * 4);
}

constexpr int64_t kRows = 2048, kWidth = 256, kMlpWidth = 683, kVocabulary = 8192;

void rms_norm(benchmark::State& state) {
  Device device(int(state.range(0)));
  const Tensor x = device.random({kRows, kWidth, 1, 1}), y = device.zeros(x.shape);
  const Tensor weight = device.random({kWidth, 1, 1, 1});
  measure_elements(state, x.size(), 2,
                   [&] { device.backend->rms_norm_forward(x, weight, 1e-6f, y); });
}

void rms_norm_backward(benchmark::State& state) {
  Device device(int(state.range(0)));
  const Tensor x = device.random({kRows, kWidth, 1, 1}), dy = device.random(x.shape),
               dx = device.zeros(x.shape);
  const Tensor weight = device.random({kWidth, 1, 1, 1}), d_weight = device.zeros(weight.shape);
  measure_elements(state, x.size(), 4, [&] {
    device.backend->rms_norm_backward(x, weight, 1e-6f, dy, Write::add, dx, d_weight);
  });
}

/// A layer's projection, its heads and the rotary positions of one rank.
struct Projection {
  explicit Projection(Device& device) {
    qkv = device.random({kRows, shape.qkv_width(), 1, 1});
    q = device.random({shape.heads, kRows, shape.head_dim, 1});
    kv = device.random({2 * shape.kv_heads * shape.head_dim * kRows, 1, 1, 1});
    rotary = device.zeros({kRows, shape.head_dim, 1, 1});
    device.backend->rotary_table(pieces, 1e4, rotary);
  }
  QkvSplit split() const { return {shape, pieces, rotary, {}, {}, 1e-6f}; }

  const HeadShape shape{8, 8, 32};
  const std::vector<Piece> pieces{{0, 1, 0, kRows}};
  Tensor qkv, q, kv, rotary;
};

void rotary_table(benchmark::State& state) {
  Device device(int(state.range(0)));
  const Projection p(device);
  measure_elements(state, p.rotary.size(), 1, [&] { device.backend->rotary_table(p.pieces, 1e4, p.rotary); });
}

void split_qkv(benchmark::State& state) {
  Device device(int(state.range(0)));
  const Projection p(device);
  measure_elements(state, p.qkv.size(), 2, [&] { device.backend->qkv_split_forward(p.split(), p.qkv, p.q, p.kv); });
}

void split_qkv_backward(benchmark::State& state) {
  Device device(int(state.range(0)));
  const Projection p(device);
  measure_elements(state, p.qkv.size(), 2,
                   [&] { device.backend->qkv_split_backward(p.split(), {}, p.q, p.kv, p.qkv, {}, {}); });
}

/// Tokens that are all different rows of the table.
struct Lookup {
  explicit Lookup(Device& device)
      : table(device.random({kVocabulary, kWidth, 1, 1})), y(device.random({kRows, kWidth, 1, 1})) {
    tokens = device.backend->arena().allocate("bench", Dtype::i32, {kRows, 1, 1, 1});
    for (int64_t i = 0; i < kRows; ++i) tokens.as<int32_t>()[size_t(i)] = int32_t(i * 7919 % kVocabulary);
  }
  Tensor table, y, tokens;
};

void embedding(benchmark::State& state) {
  Device device(int(state.range(0)));
  const Lookup lookup(device);
  measure_elements(state, lookup.y.size(), 2,
                   [&] { device.backend->embedding_forward(lookup.tokens, lookup.table, lookup.y); });
}

void embedding_backward(benchmark::State& state) {
  Device device(int(state.range(0)));
  const Lookup lookup(device);
  measure_elements(state, lookup.y.size(), 3,
                   [&] { device.backend->embedding_backward(lookup.tokens, lookup.y, lookup.table); });
}

void sum_of_squares(benchmark::State& state) {
  Device device(int(state.range(0)));
  const Tensor x = device.random({5 << 20, 1, 1, 1});
  const Tensor result = device.backend->arena().allocate("bench", Dtype::f64, {1, 1, 1, 1});
  measure_elements(state, x.size(), 1, [&] { device.backend->sum_of_squares(x, result); });
}

void swiglu(benchmark::State& state) {
  Device device(int(state.range(0)));
  const Tensor gate_up = device.random({kRows, 2 * kMlpWidth, 1, 1}),
               y = device.zeros({kRows, kMlpWidth, 1, 1});
  measure_elements(state, y.size(), 3, [&] { device.backend->swiglu_forward(gate_up, y); });
}

void swiglu_backward(benchmark::State& state) {
  Device device(int(state.range(0)));
  const Tensor gate_up = device.random({kRows, 2 * kMlpWidth, 1, 1}),
               dy = device.random({kRows, kMlpWidth, 1, 1});
  const Tensor d_gate_up = device.zeros(gate_up.shape);
  measure_elements(state, dy.size(), 5,
                   [&] { device.backend->swiglu_backward(gate_up, dy, d_gate_up); });
}

void cross_entropy(benchmark::State& state) {
  Device device(int(state.range(0)));
  const Tensor logits = device.random({512, kVocabulary, 1, 1}),
               losses = device.zeros({512, 1, 1, 1});
  const Tensor labels = device.backend->arena().allocate("bench", Dtype::i32, {512, 1, 1, 1});
  std::ranges::fill(labels.as<int32_t>(), 7);
  measure_elements(state, logits.size(), 4, [&] {
    device.backend->cross_entropy(logits, labels, CrossEntropy::loss_and_gradient, 1e-3f, losses);
  });
}

void adamw(benchmark::State& state) {
  Device device(int(state.range(0)));
  const Shape shape{5 << 20, 1, 1, 1};
  const Tensor gradient = device.random(shape), weights = device.random(shape);
  const Tensor first = device.zeros(shape), second = device.zeros(shape);
  int64_t step = 1;
  measure_elements(state, weights.size(), 7, [&] {
    device.backend->adamw({1e-3f, 0.9f, 0.95f, 1e-8f, 0.1f, 1, step++}, gradient, weights, first,
                          second, {});
  });
}

void register_all() {
  const auto timed = [](benchmark::internal::Benchmark* benchmark) {
    benchmark->UseManualTime()->Unit(benchmark::kMillisecond);
  };
  for (const int64_t threads : {1, 2}) {
    for (const int64_t head_dim : {64, 32}) {
      for (const int64_t length : {2048, 8192}) {
        timed(benchmark::RegisterBenchmark("attention/forward", attention_forward)
                  ->ArgNames({"threads", "T", "head_dim"})
                  ->Args({threads, length, head_dim}));
        timed(benchmark::RegisterBenchmark("attention/backward", attention_backward)
                  ->ArgNames({"threads", "T", "head_dim"})
                  ->Args({threads, length, head_dim}));
      }
    }
    const std::vector<std::array<int64_t, 3>> layers{// rows, in, out
                                                     {2048, 256, 768},
                                                     {2048, 256, 256},
                                                     {1024, 256, 1366},
                                                     {1024, 683, 256},
                                                     {512, 256, 8192}};
    for (const auto& [rows, in, out] : layers) {
      for (const auto& [pass, name] : {std::pair{Linear::forward, "forward"},
                                       {Linear::input_gradient, "dX"},
                                       {Linear::weight_gradient, "dW"}}) {
        for (const By by : {By::ringlet, By::openblas}) {
#ifndef RINGLET_BENCH_OPENBLAS
          if (by == By::openblas) continue;
#endif
          const std::string title = std::string(by == By::ringlet ? "matmul/" : "openblas/") + name;
          timed(benchmark::RegisterBenchmark(title.c_str(), linear, pass, by)
                    ->ArgNames({"threads", "rows", "in", "out"})
                    ->Args({threads, rows, in, out}));
        }
      }
    }
    for (const auto& [name, function] :
         std::initializer_list<std::pair<const char*, void (*)(benchmark::State&)>>{
             {"rms_norm/forward", rms_norm},
             {"rms_norm/backward", rms_norm_backward},
             {"rotary_table", rotary_table},
             {"qkv_split/forward", split_qkv},
             {"qkv_split/backward", split_qkv_backward},
             {"swiglu/forward", swiglu},
             {"swiglu/backward", swiglu_backward},
             {"embedding/forward", embedding},
             {"embedding/backward", embedding_backward},
             {"cross_entropy", cross_entropy},
             {"sum_of_squares", sum_of_squares},
             {"adamw", adamw}}) {
      timed(benchmark::RegisterBenchmark(name, function)->ArgName("threads")->Arg(threads));
    }
  }
}

}  // namespace
}  // namespace ringlet::bench

int main(int argc, char** argv) {
  ringlet::bench::register_all();
  return ringlet::bench::run_benchmarks(argc, argv);
}
