// Attention by each kernel that serves, and what a rank of a ring loses to its eight steps.
#include <algorithm>
#include <array>

#include "tests/bench/gpu_bench.h"

namespace ringlet::bench {
namespace {

constexpr int64_t kGib = int64_t{1} << 30;

const char* name_of(CudaAttention path) {
  return path == CudaAttention::plain ? "plain" : path == CudaAttention::mma ? "mma" : "wgmma";
}

std::vector<CudaAttention> paths_of(int32_t compute_capability) {
  std::vector<CudaAttention> paths = {CudaAttention::mma};
  if (compute_capability == 90) paths.push_back(CudaAttention::wgmma);
  return paths;
}

/// A rank's tensors, filled; bf16 as in training.
struct Layer {
  Tensor q, d_output, first_visible, output, lse, delta, dq;
  AttentionState state;
  std::vector<Tensor> kv, dkv;  // one of each for every piece of keys
};

Tensor all_visible(Gpu& gpu, int64_t rows) {
  const Tensor tensor = gpu.empty(Dtype::i64, {rows, 1, 1, 1});
  upload<int64_t>(*gpu, std::vector<int64_t>(rows), tensor);
  return tensor;
}

Layer make_layer(Gpu& gpu, const HeadShape& shape, int64_t rows, const std::vector<Piece>& keys) {
  const Shape heads{shape.heads, rows, shape.head_dim, 1}, per_row{shape.heads, rows, 1, 1};
  const Shape flat{rows, shape.q_width(), 1, 1};
  Layer layer;
  layer.q = gpu.random(Dtype::bf16, heads);
  layer.d_output = gpu.random(Dtype::bf16, flat);
  layer.first_visible = all_visible(gpu, rows);
  layer.output = gpu.empty(Dtype::bf16, flat);
  layer.lse = gpu.empty(Dtype::f32, per_row), layer.delta = gpu.empty(Dtype::f32, per_row);
  layer.state = {gpu.empty(Dtype::f32, heads), gpu.empty(Dtype::f32, per_row),
                 gpu.empty(Dtype::f32, per_row)};
  layer.dq = gpu.zeros(heads);
  for (const Piece& piece : keys) {
    const Shape both{2, shape.kv_heads, piece.row_count, shape.head_dim};
    layer.kv.push_back(gpu.random(Dtype::bf16, both));
    layer.dkv.push_back(gpu.zeros(both));
  }
  return layer;
}

/// One step for each pair of pieces that see each other.
struct Pass {
  HeadShape shape;
  std::vector<Piece> queries, keys;
  Layer layer;

  template <class Body>
  void for_each_step(const Body& body) const {
    for (size_t key = keys.size(); key-- > 0;) {
      for (const Piece& piece : queries) {
        if (keys[key].first_position > piece.last_position()) continue;
        body(AttentionStep{shape, piece, keys[key], layer.first_visible}, key);
      }
    }
  }
  void forward(Gpu& gpu) const {
    for_each_step([&](const AttentionStep& step, size_t key) {
      gpu->attention_forward(step, layer.q, layer.kv[key], layer.state);
    });
  }
  void backward(Gpu& gpu) const {
    for_each_step([&](const AttentionStep& step, size_t key) {
      gpu->attention_backward(step, layer.q, layer.kv[key], {layer.d_output, layer.lse, layer.delta},
                              layer.dq, layer.dkv[key]);
    });
  }
  /// Everything that the backward pass reads.
  void prepare(Gpu& gpu) const {
    gpu->attention_start(layer.state);
    forward(gpu);
    gpu->attention_finish(shape, layer.state, layer.output, layer.lse);
    gpu->attention_delta(shape, layer.output, layer.d_output, layer.delta);
  }
};

Pass make_pass(Gpu& gpu, const HeadShape& shape, std::vector<Piece> queries, std::vector<Piece> keys) {
  int64_t rows = 0;
  for (const Piece& piece : queries) rows += piece.row_count;
  Layer layer = make_layer(gpu, shape, rows, keys);
  return {shape, std::move(queries), std::move(keys), std::move(layer)};
}

struct Times {
  double forward_ms, backward_ms;
};

Times time_pass(Gpu& gpu, const Pass& pass) {
  pass.prepare(gpu);
  const double forward_ms = gpu.time([&] { pass.forward(gpu); });
  pass.prepare(gpu);  // the state went on growing
  return {forward_ms, gpu.time([&] { pass.backward(gpu); })};
}

void measure_size(Gpu& gpu, CudaAttention path, const HeadShape& shape, int64_t length, Report& report) {
  for (const bool causal : {true, false}) {
    const ArenaScope scope(gpu->arena());
    const Pass pass = make_pass(gpu, shape, {{causal ? 0 : length, 1, 0, length}}, {{0, 1, 0, length}});
    const Times times = time_pass(gpu, pass);
    const double flops = 4.0 * double(length) * double(length) * double(shape.q_width()) / (causal ? 2 : 1);
    const std::string name = std::string(name_of(path)) + ", head_dim " + std::to_string(shape.head_dim) +
                             ", T " + std::to_string(length / 1024) + "k, " +
                             (causal ? "causal" : "full block");
    report.add(name + ", forward", times.forward_ms, flops / times.forward_ms / 1e9, "TFLOP/s");
    report.add(name + ", backward", times.backward_ms, 2.5 * flops / times.backward_ms / 1e9, "TFLOP/s");
  }
}

/// The pieces of `rank` in a zigzag of `ring`, each half of `rows`.
std::vector<Piece> zigzag(int64_t rank, int64_t ring, int64_t rows) {
  const int64_t half = rows / 2;
  return {{rank * half, 1, 0, half}, {(2 * ring - 1 - rank) * half, 1, half, half}};
}

/// A rank's eight steps beside an eighth of one call over everything; the slowest of three ranks counts.
void measure_ring_of(Gpu& gpu, CudaAttention path, const HeadShape& shape, int64_t rows, Report& report) {
  constexpr int64_t kRing = 8;
  const int64_t total = kRing * rows;
  const auto measure = [&](std::vector<Piece> queries, std::vector<Piece> keys) {
    const ArenaScope scope(gpu->arena());
    return time_pass(gpu, make_pass(gpu, shape, std::move(queries), std::move(keys)));
  };
  const Times alone = measure({{0, 1, 0, total}}, {{0, 1, 0, total}});
  Times slowest{0, 0};
  for (const int64_t rank : {0, 3, 7}) {
    std::vector<Piece> keys;
    for (int64_t hop = kRing; hop-- > 0;) {  // steps run from the last piece to the first: its own come first
      for (const Piece& piece : zigzag((rank + kRing - hop) % kRing, kRing, rows)) keys.push_back(piece);
    }
    const Times times = measure(zigzag(rank, kRing, rows), keys);
    slowest = {std::max(slowest.forward_ms, times.forward_ms),
               std::max(slowest.backward_ms, times.backward_ms)};
  }
  const std::string name = std::string(name_of(path)) + ", " + std::to_string(shape.heads) + " heads of " +
                           std::to_string(shape.head_dim) + ", " + std::to_string(rows / 1024) + "k a rank";
  const double forward_flops = 2.0 * double(total) * double(total) * double(shape.q_width());
  report.add(name + ", one call forward", alone.forward_ms, forward_flops / alone.forward_ms / 1e9,
             "TFLOP/s");
  report.add(name + ", one call backward", alone.backward_ms, 2.5 * forward_flops / alone.backward_ms / 1e9,
             "TFLOP/s");
  const auto share = [&](const char* what, double one_ms, double rank_ms) {
    report.add(name + ", a rank's steps " + what, rank_ms, 100 * one_ms / kRing / rank_ms, "%");
  };
  share("forward", alone.forward_ms, slowest.forward_ms);
  share("backward", alone.backward_ms, slowest.backward_ms);
  share("both", alone.forward_ms + alone.backward_ms, slowest.forward_ms + slowest.backward_ms);
}

}  // namespace

void measure_attention(const CudaInterface& interface, int32_t compute_capability, Extent extent,
                       Report& report) {
  report.begin("Attention",
               "bf16, batch 1; forward 4 T^2 H d flops, half of that causal; backward 2.5 times forward");
  std::vector<int64_t> lengths = {2048, 8192};
  if (extent == Extent::full) lengths = {2048, 8192, 16384, 32768};
  std::vector<CudaAttention> paths = paths_of(compute_capability);
  paths.push_back(CudaAttention::plain);
  for (const CudaAttention path : paths) {
    try {
      Gpu gpu(interface, path, 6 * kGib);
      for (const HeadShape& shape : {HeadShape{16, 16, 128}, {32, 32, 64}}) {
        for (const int64_t length : lengths) {
          if (path == CudaAttention::plain && length > 2048) continue;  // no tensor cores: seconds
          measure_size(gpu, path, shape, length, report);
        }
      }
      if (path == CudaAttention::plain) continue;
      measure_size(gpu, path, {16, 4, 128}, 8192, report);  // grouped heads: less traffic of keys
    } catch (const std::exception& error) {
      report.skip(name_of(path), error.what());
    }
  }
}

void measure_ring(const CudaInterface& interface, int32_t compute_capability, Extent extent, Report& report) {
  report.begin("A rank of a ring of 8, zigzag, no messages",
               "an eighth of one causal call over all tokens, in percent of the time of a rank's steps");
  for (const CudaAttention path : paths_of(compute_capability)) {
    try {
      Gpu gpu(interface, path, 12 * kGib);
      for (const HeadShape& shape : {HeadShape{6, 6, 128}, {12, 12, 64}}) {
        measure_ring_of(gpu, path, shape, 8192, report);
        // The slower kernel would take ten seconds to say the same.
        if (extent == Extent::full && path == paths_of(compute_capability).back()) {
          measure_ring_of(gpu, path, shape, 32768, report);
        }
      }
    } catch (const std::exception& error) {
      report.skip(name_of(path), error.what());
    }
  }
}

}  // namespace ringlet::bench
