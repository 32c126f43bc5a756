#include "train/verify/attention_watch.h"

#include "kernels/host_values.h"

namespace ringlet {
namespace {

/// Copies `count` floats that a rank holds at `from` to where they belong in the whole.
void put_values(const std::vector<float>& own, int64_t from, int64_t count,
                std::vector<double>& whole, int64_t to) {
  for (int64_t i = 0; i < count; ++i) whole.at(size_t(to + i)) = own.at(size_t(from + i));
}

}  // namespace

AttentionWatch::AttentionWatch(Backend& device, const Trace& trace, const GptConfig& gpt,
                               std::span<const Piece> pieces)
    : ForwardingBackend(device),
      trace_(trace),
      heads_(gpt.heads),
      width_(gpt.width),
      pieces_(pieces.begin(), pieces.end()),
      layers_(size_t(gpt.layers)) {}

AttentionWatch::Layer& AttentionWatch::layer() { return layers_.at(size_t(trace_.place().layer)); }

void AttentionWatch::attention_finish(const HeadShape& shape, const AttentionState& state,
                                      const Tensor& output, const Tensor& lse) {
  ForwardingBackend::attention_finish(shape, state, output, lse);
  layer().output = host_values(*this, output);
  layer().lse = host_values(*this, lse);
}

void AttentionWatch::qkv_split_backward(const QkvSplit& split, const Tensor& qkv, const Tensor& dq,
                                        const Tensor& dkv, const Tensor& d_qkv,
                                        const Tensor& d_q_norm, const Tensor& d_k_norm) {
  layer().dq = host_values(*this, dq);
  layer().dkv = host_values(*this, dkv);
  ForwardingBackend::qkv_split_backward(split, qkv, dq, dkv, d_qkv, d_q_norm, d_k_norm);
}

void AttentionWatch::embedding_backward(const Tensor& tokens, const Tensor& dy,
                                        const Tensor& d_table) {
  d_input_ = host_values(*this, dy);
  ForwardingBackend::embedding_backward(tokens, dy, d_table);
}

void AttentionWatch::put(WindowValues& values) const {
  const auto [heads, kv_heads, dim] = heads_;
  int64_t rows = 0;
  for (const Piece& piece : pieces_) rows += piece.row_count;
  for (const Piece& piece : pieces_) {
    const int64_t first_kv = 2 * kv_heads * dim * piece.first_row;
    const int64_t plane = kv_heads * piece.row_count * dim;
    for (int64_t i = 0; i < piece.row_count; ++i) {
      const int64_t row = piece.first_row + i, at = piece.position(i);
      put_values(d_input_, row * width_, width_, values.d_input, at * width_);
      for (size_t l = 0; l < layers_.size(); ++l) {
        const Layer& own = layers_[l];
        LayerValues& whole = values.layers[l];
        put_values(own.output, row * heads * dim, heads * dim, whole.output, at * heads * dim);
        for (int64_t h = 0; h < heads; ++h) {
          put_values(own.lse, h * rows + row, 1, whole.lse, at * heads + h);
          put_values(own.dq, (h * rows + row) * dim, dim, whole.dq, (at * heads + h) * dim);
        }
        for (int64_t h = 0; h < kv_heads; ++h) {
          const int64_t from = first_kv + (h * piece.row_count + i) * dim;
          put_values(own.dkv, from, dim, whole.dk, (at * kv_heads + h) * dim);
          put_values(own.dkv, from + plane, dim, whole.dv, (at * kv_heads + h) * dim);
        }
      }
    }
  }
}

void resize_for(const GptConfig& gpt, int64_t length, WindowValues& values) {
  const auto [heads, kv_heads, dim] = gpt.heads;
  values.d_input.assign(size_t(length * gpt.width), 0);
  values.layers.assign(size_t(gpt.layers), {});
  for (LayerValues& layer : values.layers) {
    layer.output.assign(size_t(length * heads * dim), 0);
    layer.dq = layer.output;
    layer.lse.assign(size_t(length * heads), 0);
    layer.dk.assign(size_t(length * kv_heads * dim), 0);
    layer.dv = layer.dk;
  }
}

}  // namespace ringlet
