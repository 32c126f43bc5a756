#include "tests/bench/gpu_bench_pass.h"

#include <utility>

#include "model/sequence_layout.h"

namespace ringlet::bench {
namespace {

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

template <class Body>
void for_each_step(const Pass& pass, const Body& body) {
  for (size_t key = pass.keys.size(); key-- > 0;) {
    for (const Piece& piece : query_runs(Mask{}, pass.queries, pass.keys[key])) {
      body(AttentionStep{pass.shape, piece, pass.keys[key], pass.layer.first_visible}, key);
    }
  }
}

}  // namespace

void Pass::forward(Gpu& gpu) const {
  for_each_step(*this, [&](const AttentionStep& step, size_t key) {
    gpu->attention_forward(step, layer.q, layer.kv[key], layer.state);
  });
}

void Pass::backward(Gpu& gpu) const {
  size_t last_key = keys.size();
  for_each_step(*this, [&](const AttentionStep& step, size_t key) {
    const Write write = key == last_key ? Write::add : Write::set;  // as on a ring: the first queries set
    gpu->attention_backward(step, layer.q, layer.kv[key], {layer.d_output, layer.lse, layer.delta},
                            layer.dq, write, layer.dkv[key]);
    last_key = key;
  });
}

void Pass::whole_forward(Gpu& gpu) const {
  gpu->attention_start(layer.state);
  forward(gpu);
  gpu->attention_finish(shape, layer.state, layer.output, layer.lse);
}

void Pass::whole_backward(Gpu& gpu) const {
  gpu->attention_delta(shape, layer.output, layer.d_output, layer.delta);
  backward(gpu);
}

Pass make_pass(Gpu& gpu, const HeadShape& shape, std::vector<Piece> queries,
               std::vector<Piece> keys) {
  int64_t rows = 0;
  for (const Piece& piece : queries) rows += piece.row_count;
  Layer layer = make_layer(gpu, shape, rows, keys);
  return {shape, std::move(queries), std::move(keys), std::move(layer)};
}

Times time_steps(Gpu& gpu, const Pass& pass) {
  const auto prepare = [&] {
    pass.whole_forward(gpu);
    gpu->attention_delta(pass.shape, pass.layer.output, pass.layer.d_output, pass.layer.delta);
  };
  prepare();
  const double forward_ms = gpu.time([&] { pass.forward(gpu); });
  prepare();  // the state went on growing
  return {forward_ms, gpu.time([&] { pass.backward(gpu); })};
}

}  // namespace ringlet::bench
