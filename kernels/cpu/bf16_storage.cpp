#include "kernels/cpu/bf16_storage.h"

#include <algorithm>
#include <array>
#include <utility>

#include "kernels/cpu/cpu_backend.h"
#include "kernels/forwarding_backend.h"
#include "kernels/op_shapes.h"

namespace ringlet {
namespace {

/// Operands of one operation that are widened at the same time.
constexpr int kMostOperands = 5;

void widen(const Bf16* from, int64_t count, float* to) {
  for (int64_t i = 0; i < count; ++i) to[i] = to_float(from[i]);
}

void round(const float* from, int64_t count, Bf16* to) {
  for (int64_t i = 0; i < count; ++i) to[i] = to_bf16(from[i]);
}

/// Calls body(row, elements) for each row, or once where rows follow one another.
template <class Body>
void for_each_run(const Tensor& tensor, const Body& body) {
  if (tensor.contiguous()) return body(0, tensor.size());
  for (int64_t row = 0; row < tensor.rows(); ++row) body(row, tensor.row_size());
}

/// Between tensors of one shape; rows of the bf16 one may be apart.
void widen(const Tensor& from, const Tensor& to) {
  for_each_run(from,
               [&](int64_t row, int64_t count) { widen(from.row<Bf16>(row), count, to.row<float>(row)); });
}

void round(const Tensor& from, const Tensor& to) {
  for_each_run(to,
               [&](int64_t row, int64_t count) { round(from.row<float>(row), count, to.row<Bf16>(row)); });
}

/// Every override checks the shapes of bf16 operands itself: `inner` sees widened ones, which all are f32.
class Bf16Storage final : public ForwardingBackend {
 public:
  using ForwardingBackend::ForwardingBackend;

  void fill(float value, const Tensor& to) override {
    if (to.dtype != Dtype::bf16) return ForwardingBackend::fill(value, to);
    shapes::fill(to);
    std::ranges::fill(to.as<Bf16>(), to_bf16(value));
  }
  void matmul(const Tensor& a, Transpose transpose_a, const Tensor& b, Transpose transpose_b, Write write,
              const Tensor& out) override {
    if (a.dtype != Dtype::bf16) return ForwardingBackend::matmul(a, transpose_a, b, transpose_b, write, out);
    shapes::matmul(a, transpose_a, b, transpose_b, out);
    const Tensor sum = out.dtype == Dtype::f32 ? out : target(2, out, write);
    ForwardingBackend::matmul(widened(0, a), transpose_a, widened(1, b), transpose_b, write, sum);
    if (out.dtype == Dtype::bf16) round(sum, out);
  }

  void rms_norm_forward(const Tensor& x, const Tensor& weight, float epsilon, const Tensor& y) override {
    if (x.dtype != Dtype::bf16) return ForwardingBackend::rms_norm_forward(x, weight, epsilon, y);
    shapes::rms_norm_forward(x, weight, y);
    const Tensor wide_y = floats(2, y.shape);
    ForwardingBackend::rms_norm_forward(widened(0, x), widened(1, weight), epsilon, wide_y);
    round(wide_y, y);
  }
  void rms_norm_backward(const Tensor& x, const Tensor& weight, float epsilon, const Tensor& dy, Write write,
                         const Tensor& dx, const Tensor& d_weight) override {
    if (x.dtype != Dtype::bf16) {
      return ForwardingBackend::rms_norm_backward(x, weight, epsilon, dy, write, dx, d_weight);
    }
    shapes::rms_norm_backward(x, weight, dy, dx, d_weight);
    const Tensor wide_dx = target(3, dx, write);
    ForwardingBackend::rms_norm_backward(widened(0, x), widened(1, weight), epsilon, widened(2, dy), write,
                                         wide_dx, d_weight);
    round(wide_dx, dx);
  }

  void qkv_split_forward(const QkvSplit& split, const Tensor& qkv, const Tensor& q,
                         const Tensor& kv) override {
    if (qkv.dtype != Dtype::bf16) return ForwardingBackend::qkv_split_forward(split, qkv, q, kv);
    shapes::qkv_split_forward(split, qkv, q, kv);
    const Tensor wide_q = floats(3, q.shape), wide_kv = floats(4, kv.shape);
    ForwardingBackend::qkv_split_forward(with_wide_norms(split), widened(0, qkv), wide_q, wide_kv);
    round(wide_q, q);
    round(wide_kv, kv);
  }
  void qkv_split_backward(const QkvSplit& split, const Tensor& qkv, const Tensor& dq, const Tensor& dkv,
                          const Tensor& d_qkv, const Tensor& d_q_norm, const Tensor& d_k_norm) override {
    if (d_qkv.dtype != Dtype::bf16) {
      return ForwardingBackend::qkv_split_backward(split, qkv, dq, dkv, d_qkv, d_q_norm, d_k_norm);
    }
    shapes::qkv_split_backward(split, qkv, dq, dkv, d_qkv, d_q_norm, d_k_norm);
    const Tensor wide_qkv = split.q_norm ? widened(0, qkv) : Tensor{};
    const Tensor wide_d_qkv = floats(3, d_qkv.shape);
    ForwardingBackend::qkv_split_backward(with_wide_norms(split), wide_qkv, dq, dkv, wide_d_qkv, d_q_norm,
                                          d_k_norm);
    round(wide_d_qkv, d_qkv);
  }

  void attention_forward(const AttentionStep& step, const Tensor& q, const Tensor& kv,
                         const AttentionState& state) override {
    if (q.dtype != Dtype::bf16) return ForwardingBackend::attention_forward(step, q, kv, state);
    shapes::attention_forward(step, q, kv, state);
    ForwardingBackend::attention_forward(step, widened_queries(0, step, q), widened(1, kv), state);
  }
  void attention_finish(const HeadShape& shape, const AttentionState& state, const Tensor& output,
                        const Tensor& lse) override {
    if (output.dtype != Dtype::bf16) return ForwardingBackend::attention_finish(shape, state, output, lse);
    shapes::attention_finish(shape, state, output, lse);
    const Tensor wide_output = floats(0, output.shape);
    ForwardingBackend::attention_finish(shape, state, wide_output, lse);
    round(wide_output, output);
  }
  void attention_delta(const HeadShape& shape, const Tensor& output, const Tensor& d_output,
                       const Tensor& delta) override {
    if (output.dtype != Dtype::bf16)
      return ForwardingBackend::attention_delta(shape, output, d_output, delta);
    shapes::attention_delta(shape, output, d_output, delta);
    ForwardingBackend::attention_delta(shape, widened(0, output), widened(1, d_output), delta);
  }
  void attention_backward(const AttentionStep& step, const Tensor& q, const Tensor& kv,
                          const AttentionGradient& gradient, const Tensor& dq, Write write,
                          const Tensor& dkv) override {
    if (q.dtype != Dtype::bf16) return ForwardingBackend::attention_backward(step, q, kv, gradient, dq, write, dkv);
    shapes::attention_backward(step, q, kv, gradient, dq, dkv);
    const Tensor d_output = floats(2, gradient.d_output.shape);
    const int64_t first = step.queries.first_row, count = step.queries.row_count;
    widen(gradient.d_output.slice(first, count), d_output.slice(first, count));
    ForwardingBackend::attention_backward(step, widened_queries(0, step, q), widened(1, kv),
                                          {d_output, gradient.lse, gradient.delta}, dq, write, dkv);
  }

  void swiglu_forward(const Tensor& gate_up, const Tensor& y) override {
    if (y.dtype != Dtype::bf16) return ForwardingBackend::swiglu_forward(gate_up, y);
    shapes::swiglu_forward(gate_up, y);
    const Tensor wide_y = floats(1, y.shape);
    ForwardingBackend::swiglu_forward(widened(0, gate_up), wide_y);
    round(wide_y, y);
  }
  void swiglu_backward(const Tensor& gate_up, const Tensor& dy, const Tensor& d_gate_up) override {
    if (dy.dtype != Dtype::bf16) return ForwardingBackend::swiglu_backward(gate_up, dy, d_gate_up);
    shapes::swiglu_backward(gate_up, dy, d_gate_up);
    const Tensor wide_d_gate_up = floats(2, d_gate_up.shape);
    ForwardingBackend::swiglu_backward(widened(0, gate_up), widened(1, dy), wide_d_gate_up);
    round(wide_d_gate_up, d_gate_up);
  }

  void embedding_backward(const Tensor& tokens, const Tensor& dy, const Tensor& d_table) override {
    if (dy.dtype != Dtype::bf16) return ForwardingBackend::embedding_backward(tokens, dy, d_table);
    shapes::embedding_backward(tokens, dy, d_table);
    ForwardingBackend::embedding_backward(tokens, widened(0, dy), d_table);
  }
  void cross_entropy(const Tensor& logits, const Tensor& labels, CrossEntropy mode, float gradient_scale,
                     const Tensor& losses) override {
    if (logits.dtype != Dtype::bf16) {
      return ForwardingBackend::cross_entropy(logits, labels, mode, gradient_scale, losses);
    }
    shapes::cross_entropy(logits, labels, losses);
    const Tensor wide_logits = widened(0, logits);
    ForwardingBackend::cross_entropy(wide_logits, labels, mode, gradient_scale, losses);
    if (mode == CrossEntropy::loss_and_gradient) round(wide_logits, logits);
  }
  void adamw(const AdamW& settings, const Tensor& gradient, const Tensor& weights, const Tensor& first_moment,
             const Tensor& second_moment, const Tensor& rounded) override {
    if (rounded) shapes::adamw(settings, gradient, weights, first_moment, second_moment, rounded);
    ForwardingBackend::adamw(settings, gradient, weights, first_moment, second_moment, {});
    if (rounded) round(weights.as<float>().data(), weights.size(), rounded.as<Bf16>().data());
  }

 private:
  /// Uninitialised floats, until the next call with the same slot.
  Tensor floats(int slot, const Shape& shape) {
    std::unique_ptr<HostMemory>& memory = slots_.at(size_t(slot));
    const int64_t bytes = make_tensor(nullptr, Dtype::f32, shape).bytes();
    // The old memory goes first: the two need not fit together.
    if (memory && memory->bytes() < bytes) memory.reset();
    if (!memory) memory = std::make_unique<HostMemory>(bytes);
    return make_tensor(memory->data(), Dtype::f32, shape);
  }

  Tensor widened(int slot, const Tensor& tensor) {
    const Tensor wide = floats(slot, tensor.shape);
    widen(tensor, wide);
    return wide;
  }

  /// f32 in place of a bf16 output that is set or added to.
  Tensor target(int slot, const Tensor& tensor, Write write) {
    return write == Write::add ? widened(slot, tensor) : floats(slot, tensor.shape);
  }

  /// q [heads, rows, head_dim] with the step's rows widened; what stands in the others is left over from
  /// other calls.
  Tensor widened_queries(int slot, const AttentionStep& step, const Tensor& q) {
    const Tensor wide = floats(slot, q.shape);
    const int64_t first = step.queries.first_row * step.shape.head_dim;
    const int64_t count = step.queries.row_count * step.shape.head_dim;
    for (int64_t head = 0; head < q.rows(); ++head) {
      widen(q.row<Bf16>(head) + first, count, wide.row<float>(head) + first);
    }
    return wide;
  }

  /// Takes slots 1 and 2.
  QkvSplit with_wide_norms(const QkvSplit& split) {
    QkvSplit wide = split;
    if (!split.q_norm) return wide;
    wide.q_norm = widened(1, split.q_norm);
    wide.k_norm = widened(2, split.k_norm);
    return wide;
  }

  std::array<std::unique_ptr<HostMemory>, kMostOperands> slots_;
};

}  // namespace

std::unique_ptr<Backend> make_bf16_storage(std::unique_ptr<Backend> inner) {
  return std::make_unique<Bf16Storage>(std::move(inner));
}

}  // namespace ringlet
