#include "kernels/cpu/bf16_storage.h"

#include <algorithm>
#include <utility>

#include "kernels/forwarding_backend.h"
#include "kernels/op_shapes.h"

namespace ringlet {
namespace {

void widen_row(const Bf16* from, int64_t count, float* to) {
  for (int64_t i = 0; i < count; ++i) to[i] = to_float(from[i]);
}

void round_row(const float* from, int64_t count, Bf16* to) {
  for (int64_t i = 0; i < count; ++i) to[i] = to_bf16(from[i]);
}

/// Calls body(row, elements) for each row, or once where rows follow one another.
template <class Body>
void for_each_run(const Tensor& tensor, const Body& body) {
  if (tensor.contiguous()) return body(0, tensor.size());
  for (int64_t row = 0; row < tensor.rows(); ++row) body(row, tensor.row_size());
}

/// Every override checks the shapes of bf16 operands itself: `inner` sees widened ones, which all are f32.
class Bf16Storage final : public ForwardingBackend {
 public:
  Bf16Storage(std::unique_ptr<Backend> inner, Widening widening)
      : ForwardingBackend(std::move(inner)), computes_(widening == Widening::computed) {}

  void fill(float value, const Tensor& to) override {
    if (to.dtype != Dtype::bf16) return ForwardingBackend::fill(value, to);
    shapes::fill(to);
    if (computes_) std::ranges::fill(to.as<Bf16>(), to_bf16(value));
  }
  void matmul(const Tensor& a, Transpose transpose_a, const Tensor& b, Transpose transpose_b, Write write,
              const Tensor& out) override {
    if (a.dtype != Dtype::bf16) return ForwardingBackend::matmul(a, transpose_a, b, transpose_b, write, out);
    shapes::matmul(a, transpose_a, b, transpose_b, out);
    const ArenaScope scratch(arena());
    const Tensor sum = out.dtype == Dtype::f32 ? out : target(out, write);
    ForwardingBackend::matmul(widened(a), transpose_a, widened(b), transpose_b, write, sum);
    if (out.dtype == Dtype::bf16) round(sum, out);
  }

  void rms_norm_forward(const Tensor& x, const Tensor& weight, float epsilon, const Tensor& y) override {
    if (x.dtype != Dtype::bf16) return ForwardingBackend::rms_norm_forward(x, weight, epsilon, y);
    shapes::rms_norm_forward(x, weight, y);
    const ArenaScope scratch(arena());
    const Tensor wide_y = floats(y.shape);
    ForwardingBackend::rms_norm_forward(widened(x), widened(weight), epsilon, wide_y);
    round(wide_y, y);
  }
  void rms_norm_backward(const Tensor& x, const Tensor& weight, float epsilon, const Tensor& dy, Write write,
                         const Tensor& dx, const Tensor& d_weight) override {
    if (x.dtype != Dtype::bf16) {
      return ForwardingBackend::rms_norm_backward(x, weight, epsilon, dy, write, dx, d_weight);
    }
    shapes::rms_norm_backward(x, weight, dy, dx, d_weight);
    const ArenaScope scratch(arena());
    const Tensor wide_dx = target(dx, write);
    ForwardingBackend::rms_norm_backward(widened(x), widened(weight), epsilon, widened(dy), write, wide_dx, d_weight);
    round(wide_dx, dx);
  }

  void qkv_split_forward(const QkvSplit& split, const Tensor& qkv, const Tensor& q,
                         const Tensor& kv) override {
    if (qkv.dtype != Dtype::bf16) return ForwardingBackend::qkv_split_forward(split, qkv, q, kv);
    shapes::qkv_split_forward(split, qkv, q, kv);
    const ArenaScope scratch(arena());
    const Tensor wide_q = floats(q.shape), wide_kv = floats(kv.shape);
    ForwardingBackend::qkv_split_forward(with_wide_norms(split), widened(qkv), wide_q, wide_kv);
    round(wide_q, q);
    round(wide_kv, kv);
  }
  void qkv_split_backward(const QkvSplit& split, const Tensor& qkv, const Tensor& dq, const Tensor& dkv,
                          const Tensor& d_qkv, const Tensor& d_q_norm, const Tensor& d_k_norm) override {
    if (d_qkv.dtype != Dtype::bf16) {
      return ForwardingBackend::qkv_split_backward(split, qkv, dq, dkv, d_qkv, d_q_norm, d_k_norm);
    }
    shapes::qkv_split_backward(split, qkv, dq, dkv, d_qkv, d_q_norm, d_k_norm);
    const ArenaScope scratch(arena());
    const Tensor wide_qkv = split.q_norm ? widened(qkv) : Tensor{};
    const Tensor wide_d_qkv = floats(d_qkv.shape);
    ForwardingBackend::qkv_split_backward(with_wide_norms(split), wide_qkv, dq, dkv, wide_d_qkv, d_q_norm,
                                          d_k_norm);
    round(wide_d_qkv, d_qkv);
  }

  void attention_forward(const AttentionStep& step, const Tensor& q, const Tensor& kv,
                         const AttentionState& state) override {
    if (q.dtype != Dtype::bf16) return ForwardingBackend::attention_forward(step, q, kv, state);
    shapes::attention_forward(step, q, kv, state);
    const ArenaScope scratch(arena());
    ForwardingBackend::attention_forward(step, widened_queries(step, q), widened(kv), state);
  }
  void attention_finish(const HeadShape& shape, const AttentionState& state, const Tensor& output,
                        const Tensor& lse) override {
    if (output.dtype != Dtype::bf16) return ForwardingBackend::attention_finish(shape, state, output, lse);
    shapes::attention_finish(shape, state, output, lse);
    const ArenaScope scratch(arena());
    const Tensor wide_output = floats(output.shape);
    ForwardingBackend::attention_finish(shape, state, wide_output, lse);
    round(wide_output, output);
  }
  void attention_delta(const HeadShape& shape, const Tensor& output, const Tensor& d_output,
                       const Tensor& delta) override {
    if (output.dtype != Dtype::bf16)
      return ForwardingBackend::attention_delta(shape, output, d_output, delta);
    shapes::attention_delta(shape, output, d_output, delta);
    const ArenaScope scratch(arena());
    ForwardingBackend::attention_delta(shape, widened(output), widened(d_output), delta);
  }
  void attention_backward(const AttentionStep& step, const Tensor& q, const Tensor& kv,
                          const AttentionGradient& gradient, const Tensor& dq, Write write,
                          const Tensor& dkv) override {
    if (q.dtype != Dtype::bf16) return ForwardingBackend::attention_backward(step, q, kv, gradient, dq, write, dkv);
    shapes::attention_backward(step, q, kv, gradient, dq, dkv);
    const ArenaScope scratch(arena());
    const Tensor d_output = floats(gradient.d_output.shape);
    const int64_t first = step.queries.first_row, count = step.queries.row_count;
    widen(gradient.d_output.slice(first, count), d_output.slice(first, count));
    ForwardingBackend::attention_backward(step, widened_queries(step, q), widened(kv),
                                          {d_output, gradient.lse, gradient.delta}, dq, write, dkv);
  }

  void swiglu_forward(const Tensor& gate_up, const Tensor& y) override {
    if (y.dtype != Dtype::bf16) return ForwardingBackend::swiglu_forward(gate_up, y);
    shapes::swiglu_forward(gate_up, y);
    const ArenaScope scratch(arena());
    const Tensor wide_y = floats(y.shape);
    ForwardingBackend::swiglu_forward(widened(gate_up), wide_y);
    round(wide_y, y);
  }
  void swiglu_backward(const Tensor& gate_up, const Tensor& dy, const Tensor& d_gate_up) override {
    if (dy.dtype != Dtype::bf16) return ForwardingBackend::swiglu_backward(gate_up, dy, d_gate_up);
    shapes::swiglu_backward(gate_up, dy, d_gate_up);
    const ArenaScope scratch(arena());
    const Tensor wide_d_gate_up = floats(d_gate_up.shape);
    ForwardingBackend::swiglu_backward(widened(gate_up), widened(dy), wide_d_gate_up);
    round(wide_d_gate_up, d_gate_up);
  }

  void embedding_backward(const Tensor& tokens, const Tensor& dy, const Tensor& d_table) override {
    if (dy.dtype != Dtype::bf16) return ForwardingBackend::embedding_backward(tokens, dy, d_table);
    shapes::embedding_backward(tokens, dy, d_table);
    const ArenaScope scratch(arena());
    ForwardingBackend::embedding_backward(tokens, widened(dy), d_table);
  }
  void cross_entropy(const Tensor& logits, const Tensor& labels, CrossEntropy mode, float gradient_scale,
                     const Tensor& losses) override {
    if (logits.dtype != Dtype::bf16) {
      return ForwardingBackend::cross_entropy(logits, labels, mode, gradient_scale, losses);
    }
    shapes::cross_entropy(logits, labels, losses);
    const ArenaScope scratch(arena());
    const Tensor wide_logits = widened(logits);
    ForwardingBackend::cross_entropy(wide_logits, labels, mode, gradient_scale, losses);
    if (mode == CrossEntropy::loss_and_gradient) round(wide_logits, logits);
  }
  void adamw(const AdamW& settings, const Tensor& gradient, const Tensor& weights, const Tensor& first_moment,
             const Tensor& second_moment, const Tensor& rounded) override {
    if (rounded) shapes::adamw(settings, gradient, weights, first_moment, second_moment, rounded);
    ForwardingBackend::adamw(settings, gradient, weights, first_moment, second_moment, {});
    if (rounded && computes_) round_row(weights.as<float>().data(), weights.size(), rounded.as<Bf16>().data());
  }

 private:
  /// Uninitialised, until the end of the operation.
  Tensor floats(const Shape& shape) { return arena().allocate("operands widened to f32", Dtype::f32, shape); }

  Tensor widened(const Tensor& tensor) {
    const Tensor wide = floats(tensor.shape);
    widen(tensor, wide);
    return wide;
  }

  /// Between tensors of one shape; rows of the bf16 one may be apart.
  void widen(const Tensor& from, const Tensor& to) const {
    if (!computes_) return;
    for_each_run(from, [&](int64_t row, int64_t count) { widen_row(from.row<Bf16>(row), count, to.row<float>(row)); });
  }
  void round(const Tensor& from, const Tensor& to) const {
    if (!computes_) return;
    for_each_run(to, [&](int64_t row, int64_t count) { round_row(from.row<float>(row), count, to.row<Bf16>(row)); });
  }

  /// f32 in place of a bf16 output that is set or added to.
  Tensor target(const Tensor& tensor, Write write) {
    return write == Write::add ? widened(tensor) : floats(tensor.shape);
  }

  /// q [heads, rows, head_dim] with the step's rows widened; what stands in the others is left over from
  /// other calls.
  Tensor widened_queries(const AttentionStep& step, const Tensor& q) {
    const Tensor wide = floats(q.shape);
    const int64_t first = step.queries.first_row * step.shape.head_dim;
    const int64_t count = step.queries.row_count * step.shape.head_dim;
    for (int64_t head = 0; computes_ && head < q.rows(); ++head) {
      widen_row(q.row<Bf16>(head) + first, count, wide.row<float>(head) + first);
    }
    return wide;
  }

  QkvSplit with_wide_norms(const QkvSplit& split) {
    QkvSplit wide = split;
    if (!split.q_norm) return wide;
    wide.q_norm = widened(split.q_norm);
    wide.k_norm = widened(split.k_norm);
    return wide;
  }

  const bool computes_;
};

}  // namespace

std::unique_ptr<Backend> make_bf16_storage(std::unique_ptr<Backend> inner, Widening widening) {
  return std::make_unique<Bf16Storage>(std::move(inner), widening);
}

}  // namespace ringlet
