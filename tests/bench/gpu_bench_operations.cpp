// Matrix products and everything that is bound by memory.
#include "tests/bench/gpu_bench.h"

namespace ringlet::bench {
namespace {

/// One product, out [m, n] (+)= op(a) op(b).
struct Product {
  std::string name;
  int64_t m, n, k;
  Transpose transpose_a, transpose_b;
  Write write;
  Dtype out;
};

double product_ms(Gpu& gpu, const Product& product) {
  const ArenaScope scope(gpu->arena());
  const auto matrix = [&](int64_t rows, int64_t columns, Transpose transpose) {
    return gpu.random(Dtype::bf16,
                      transpose == Transpose::yes ? Shape{columns, rows, 1, 1} : Shape{rows, columns, 1, 1});
  };
  const Tensor a = matrix(product.m, product.k, product.transpose_a);
  const Tensor b = matrix(product.k, product.n, product.transpose_b);
  const Tensor out = product.out == Dtype::f32 ? gpu.zeros({product.m, product.n, 1, 1})
                                               : gpu.random(Dtype::bf16, {product.m, product.n, 1, 1});
  return gpu.time(
      [&] { gpu->matmul(a, product.transpose_a, b, product.transpose_b, product.write, out); });
}

/// The same GPU as training uses it, and with the best algorithms that there are.
struct MatmulGpus {
  Gpu &usual, &fastest;
};

void measure_product(const MatmulGpus& gpus, const Product& product, Report& report) {
  const double ms = product_ms(gpus.usual, product), best_ms = product_ms(gpus.fastest, product);
  const double flops = 2.0 * double(product.m) * double(product.n) * double(product.k);
  const std::string name = product.name + ", " + std::to_string(product.m) + " x " +
                           std::to_string(product.n) + " x " + std::to_string(product.k);
  report.add(name, ms, flops / ms / 1e9, "TFLOP/s");
  report.add(name + ", share of the best", best_ms, 100 * best_ms / ms, "%");
}

/// y = x W^T, dx = dy W, dW += dy^T x in f32: a layer of `out` x `in` weights on `rows` rows.
void measure_layer(const MatmulGpus& gpus, const std::string& name, int64_t rows, int64_t out, int64_t in,
                   Write write, Report& report) {
  using enum Transpose;
  measure_product(gpus, {name + " y", rows, out, in, no, yes, write, Dtype::bf16}, report);
  measure_product(gpus, {name + " dx", rows, in, out, no, no, Write::set, Dtype::bf16}, report);
  measure_product(gpus, {name + " dW", out, in, rows, yes, no, Write::add, Dtype::f32}, report);
}

/// Tensors of one operation, and the bytes that it must move.
class ElementBench {
 public:
  ElementBench(Gpu& gpu, Report& report) : gpu_(gpu), report_(report) {}
  void run(const std::string& name, double bytes, const std::function<void()>& body) {
    const double ms = gpu_.time(body, 60);
    report_.add(name, ms, bytes / ms / 1e6, "GB/s");
  }

 private:
  Gpu& gpu_;
  Report& report_;
};

constexpr int64_t kRows = 65536, kWidth = 768, kMlpWidth = 2048;
constexpr double kActivations = double(kRows) * kWidth;

void measure_memory(Gpu& gpu, ElementBench& bench) {
  const ArenaScope scope(gpu->arena());
  const int64_t count = int64_t{1} << 28;
  const Tensor from = gpu.random(Dtype::bf16, {count, 1, 1, 1}),
               to = gpu.empty(Dtype::bf16, {count, 1, 1, 1});
  bench.run("copy, 512 MiB of bf16", 4.0 * double(count), [&] { gpu->copy(from, to); });
  bench.run("fill, 512 MiB of bf16", 2.0 * double(count), [&] { gpu->fill(1.5f, to); });
  const Tensor x = gpu.random(Dtype::f32, {count / 2, 1, 1, 1}), sum = gpu.zeros({count / 2, 1, 1, 1});
  bench.run("add, 512 MiB of f32", 12.0 * double(count / 2), [&] { gpu->add(x, sum); });
  const Tensor result = gpu.empty(Dtype::f64, {1, 1, 1, 1});
  bench.run("sum_of_squares, 512 MiB of f32", 4.0 * double(count / 2),
            [&] { gpu->sum_of_squares(x, result); });
}

/// ", 262144 rows", where they are not kRows.
std::string rows_text(int64_t rows) { return rows == kRows ? "" : ", " + std::to_string(rows) + " rows"; }

void measure_norm(Gpu& gpu, ElementBench& bench, int64_t rows) {
  const ArenaScope scope(gpu->arena());
  const Shape shape{rows, kWidth, 1, 1};
  const double elements = double(rows) * kWidth;
  const std::string suffix = rows_text(rows);
  const Tensor x = gpu.random(Dtype::bf16, shape), weight = gpu.random(Dtype::bf16, {kWidth, 1, 1, 1});
  const Tensor y = gpu.empty(Dtype::bf16, shape), dy = gpu.random(Dtype::bf16, shape);
  const Tensor dx = gpu.random(Dtype::bf16, shape), d_weight = gpu.zeros({kWidth, 1, 1, 1});
  bench.run("rms_norm forward" + suffix, 4 * elements, [&] { gpu->rms_norm_forward(x, weight, 1e-6f, y); });
  bench.run("rms_norm backward, set" + suffix, 6 * elements,
            [&] { gpu->rms_norm_backward(x, weight, 1e-6f, dy, Write::set, dx, d_weight); });
  bench.run("rms_norm backward, add" + suffix, 8 * elements,
            [&] { gpu->rms_norm_backward(x, weight, 1e-6f, dy, Write::add, dx, d_weight); });
}

void measure_swiglu(Gpu& gpu, ElementBench& bench) {
  const ArenaScope scope(gpu->arena());
  const double elements = double(kRows) * kMlpWidth;
  const Tensor gate_up = gpu.random(Dtype::bf16, {kRows, 2 * kMlpWidth, 1, 1});
  const Tensor d_gate_up = gpu.empty(Dtype::bf16, gate_up.shape),
               y = gpu.random(Dtype::bf16, {kRows, kMlpWidth, 1, 1});
  bench.run("swiglu forward, width 2048", 6 * elements, [&] { gpu->swiglu_forward(gate_up, y); });
  bench.run("swiglu backward, width 2048", 10 * elements,
            [&] { gpu->swiglu_backward(gate_up, y, d_gate_up); });
}

void measure_heads(Gpu& gpu, ElementBench& bench, bool normed, int64_t rows = kRows) {
  const ArenaScope scope(gpu->arena());
  const HeadShape heads{6, 6, 128};
  const std::vector<Piece> pieces = {{0, 1, 0, rows / 2}, {rows, 1, rows / 2, rows / 2}};
  QkvSplit split{heads, pieces, gpu.empty(Dtype::f32, {rows, heads.head_dim, 1, 1}), {}, {}, 1e-6f};
  gpu->rotary_table(pieces, 1e4, split.rotary);
  Tensor d_norm;
  if (normed) {
    split.q_norm = split.k_norm = gpu.random(Dtype::bf16, {heads.head_dim, 1, 1, 1});
    d_norm = gpu.zeros({heads.head_dim, 1, 1, 1});
  }
  const Tensor qkv = gpu.random(Dtype::bf16, {rows, heads.qkv_width(), 1, 1});
  const Tensor q = gpu.empty(Dtype::bf16, {heads.heads, rows, heads.head_dim, 1});
  const Tensor kv = gpu.empty(Dtype::bf16, {2 * heads.kv_heads * rows * heads.head_dim, 1, 1, 1});
  const Tensor dq = gpu.random(Dtype::f32, q.shape), dkv = gpu.random(Dtype::f32, kv.shape);
  const Tensor d_qkv = gpu.empty(Dtype::bf16, qkv.shape);
  const double elements = double(qkv.size()), table = double(split.rotary.bytes());
  const std::string name = normed ? "qkv_split with QK-norm " : "qkv_split ";
  bench.run(name + "forward" + rows_text(rows), 4 * elements + table, [&] { gpu->qkv_split_forward(split, qkv, q, kv); });
  bench.run(name + "backward" + rows_text(rows), (normed ? 8 : 6) * elements + table,
            [&] { gpu->qkv_split_backward(split, normed ? qkv : Tensor{}, dq, dkv, d_qkv, d_norm, d_norm); });
  if (normed) return;
  bench.run("rotary_table", table, [&] { gpu->rotary_table(pieces, 1e4, split.rotary); });
}

void measure_attention_ends(Gpu& gpu, ElementBench& bench) {
  const ArenaScope scope(gpu->arena());
  const HeadShape heads{6, 6, 128};
  const Shape per_row{heads.heads, kRows, 1, 1};
  const AttentionState state{gpu.random(Dtype::f32, {heads.heads, kRows, heads.head_dim, 1}),
                             gpu.random(Dtype::f32, per_row), gpu.empty(Dtype::f32, per_row)};
  gpu->fill(2.5f, state.sum);
  const Tensor output = gpu.random(Dtype::bf16, {kRows, heads.q_width(), 1, 1}),
               d_output = gpu.random(Dtype::bf16, output.shape);
  const Tensor lse = gpu.empty(Dtype::f32, per_row);
  bench.run("attention_finish", 6 * kActivations, [&] { gpu->attention_finish(heads, state, output, lse); });
  bench.run("attention_delta", 4 * kActivations, [&] { gpu->attention_delta(heads, output, d_output, lse); });
  bench.run("attention_start", 4 * kActivations, [&] { gpu->attention_start(state); });
}

void measure_tables(Gpu& gpu, ElementBench& bench) {
  const ArenaScope scope(gpu->arena());
  const int64_t vocabulary = 50304, chunk = 8192;
  const Tensor tokens = gpu.integers(kRows, vocabulary), bytes = gpu.integers(kRows, 257);
  const Tensor table = gpu.random(Dtype::bf16, {vocabulary, kWidth, 1, 1});
  const Tensor y = gpu.random(Dtype::bf16, {kRows, kWidth, 1, 1}),
               d_table = gpu.zeros({vocabulary, kWidth, 1, 1});
  bench.run("embedding forward, vocabulary 50304", 4 * kActivations,
            [&] { gpu->embedding_forward(tokens, table, y); });
  bench.run("embedding backward, vocabulary 50304", 2 * kActivations + 8.0 * double(table.size()),
            [&] { gpu->embedding_backward(tokens, y, d_table); });
  bench.run("embedding backward, vocabulary 257", 2 * kActivations,
            [&] { gpu->embedding_backward(bytes, y, d_table.slice(0, 257)); });
  const Tensor logits = gpu.random(Dtype::bf16, {chunk, vocabulary, 1, 1}),
               losses = gpu.empty(Dtype::f32, {chunk, 1, 1, 1});
  const Tensor labels = tokens.slice(0, chunk);
  const double elements = double(logits.size());
  bench.run("cross_entropy with gradient, 8192 x 50304", 4 * elements,
            [&] { gpu->cross_entropy(logits, labels, CrossEntropy::loss_and_gradient, 1.0f, losses); });
  bench.run("cross_entropy alone, 8192 x 50304", 2 * elements,
            [&] { gpu->cross_entropy(logits, labels, CrossEntropy::loss_only, 1.0f, losses); });
}

void measure_optimizer(Gpu& gpu, ElementBench& bench) {
  const ArenaScope scope(gpu->arena());
  const int64_t count = 124'000'000;
  const Tensor gradient = gpu.random(Dtype::f32, {count, 1, 1, 1}),
               weights = gpu.random(Dtype::f32, {count, 1, 1, 1});
  const Tensor first = gpu.zeros({count, 1, 1, 1}), second = gpu.zeros({count, 1, 1, 1});
  const Tensor rounded = gpu.empty(Dtype::bf16, {count, 1, 1, 1});
  const AdamW settings{.learning_rate = 1e-4f,
                       .beta1 = 0.9f,
                       .beta2 = 0.95f,
                       .epsilon = 1e-8f,
                       .weight_decay = 0.1f,
                       .gradient_scale = 1,
                       .step = 10};
  bench.run("adamw with bf16 copy, 124M", 30.0 * double(count),
            [&] { gpu->adamw(settings, gradient, weights, first, second, rounded); });
}

}  // namespace

void measure_matmul(Gpu& gpu, Gpu& fastest, Extent extent, Report& report) {
  const MatmulGpus gpus{gpu, fastest};
  report.begin("Matrix products",
               "bf16 operands, sums in f32, random values; 2 m n k flops; dW adds to f32; "
               "best: of cuBLASLt's algorithms, whatever its bits; its time, and our share of its speed");
  using enum Transpose;
  measure_product(gpus, {"A B^T", 8192, 8192, 8192, no, yes, Write::set, Dtype::bf16}, report);
  if (extent == Extent::full) {
    measure_product(gpus, {"A B", 8192, 8192, 8192, no, no, Write::set, Dtype::bf16}, report);
    measure_product(gpus, {"A^T B", 8192, 8192, 8192, yes, no, Write::add, Dtype::f32}, report);
  }
  constexpr int64_t kChunk = 8192;
  measure_layer(gpus, "qkv", kChunk, 3 * kWidth, kWidth, Write::set, report);
  measure_layer(gpus, "attention output", kChunk, kWidth, kWidth, Write::add, report);
  measure_layer(gpus, "gate_up", kChunk, 2 * kMlpWidth, kWidth, Write::set, report);
  measure_layer(gpus, "down", kChunk, kWidth, kMlpWidth, Write::add, report);
  measure_layer(gpus, "head of 50304", kChunk, 50304, kWidth, Write::set, report);
  measure_layer(gpus, "head of 257", kChunk, 257, kWidth, Write::set, report);
}

void measure_elements(Gpu& gpu, Report& report) {
  report.begin("Other operations",
               "bf16, 65536 x 768 unless said; bytes that must be read and written at least once");
  ElementBench bench(gpu, report);
  measure_memory(gpu, bench);
  // More rows: as many bytes as copy, fill and add move, so that what starting a kernel takes weighs as little as there.
  for (const int64_t rows : {kRows, 4 * kRows}) measure_norm(gpu, bench, rows);
  measure_swiglu(gpu, bench);
  measure_heads(gpu, bench, false);
  measure_heads(gpu, bench, true);
  measure_heads(gpu, bench, true, 4 * kRows);
  measure_attention_ends(gpu, bench);
  measure_tables(gpu, bench);
  measure_optimizer(gpu, bench);
}

}  // namespace ringlet::bench
