#include "kernels/observed_backend.h"

namespace ringlet {
namespace {

constexpr std::array<const char*, kOpCount> kNames{"upload",
                                                   "read",
                                                   "fill",
                                                   "copy",
                                                   "add",
                                                   "matmul_forward",
                                                   "matmul_input_gradient",
                                                   "matmul_weight_gradient",
                                                   "rms_norm_forward",
                                                   "rms_norm_backward",
                                                   "rotary_table",
                                                   "qkv_split_forward",
                                                   "qkv_split_backward",
                                                   "attention_start",
                                                   "attention_forward",
                                                   "attention_finish",
                                                   "attention_delta",
                                                   "attention_backward",
                                                   "swiglu_forward",
                                                   "swiglu_backward",
                                                   "embedding_forward",
                                                   "embedding_backward",
                                                   "cross_entropy",
                                                   "sum_of_squares",
                                                   "adamw"};

OpCall of_elements(Op op, const Tensor& tensor) {
  return {op, {tensor.size(), tensor.row_size(), 1}, double(tensor.size())};
}

OpCall of_attention(Op op, double flops, const AttentionStep& step) {
  return {op,
          {step.queries.row_count, step.keys.row_count, step.shape.head_dim},
          flops * double(step.shape.q_width()),
          step.queries,
          step.keys};
}

OpCall of_product(const Tensor& a, Transpose transpose_a, Transpose transpose_b, const Tensor& out) {
  const bool weight_gradient = transpose_a == Transpose::yes;
  const int64_t m = out.rows(), n = out.row_size(), k = weight_gradient ? a.rows() : a.row_size();
  const Op op = weight_gradient                 ? Op::matmul_weight_gradient
                : transpose_b == Transpose::yes ? Op::matmul_forward
                                                : Op::matmul_input_gradient;
  return {op, {m, n, k}, 2.0 * double(m) * double(n) * double(k)};
}

}  // namespace

std::span<const char* const> op_names() { return kNames; }

void ObservedBackend::upload(std::span<const std::byte> host, const Tensor& to) {
  observe(of_elements(Op::upload, to), [&] { ForwardingBackend::upload(host, to); });
}

void ObservedBackend::read(const Tensor& from, std::span<std::byte> host) {
  observe(of_elements(Op::read, from), [&] { ForwardingBackend::read(from, host); });
}

void ObservedBackend::fill(float value, const Tensor& to) {
  observe(of_elements(Op::fill, to), [&] { ForwardingBackend::fill(value, to); });
}

void ObservedBackend::copy(const Tensor& from, const Tensor& to) {
  observe(of_elements(Op::copy, to), [&] { ForwardingBackend::copy(from, to); });
}

void ObservedBackend::add(const Tensor& from, const Tensor& to) {
  observe(of_elements(Op::add, to), [&] { ForwardingBackend::add(from, to); });
}

void ObservedBackend::matmul(const Tensor& a, Transpose transpose_a, const Tensor& b, Transpose transpose_b,
                             Write write, const Tensor& out) {
  observe(of_product(a, transpose_a, transpose_b, out),
          [&] { ForwardingBackend::matmul(a, transpose_a, b, transpose_b, write, out); });
}

void ObservedBackend::rms_norm_forward(const Tensor& x, const Tensor& weight, float epsilon, const Tensor& y) {
  observe(of_elements(Op::rms_norm_forward, x), [&] { ForwardingBackend::rms_norm_forward(x, weight, epsilon, y); });
}

void ObservedBackend::rms_norm_backward(const Tensor& x, const Tensor& weight, float epsilon, const Tensor& dy,
                                        Write write, const Tensor& dx, const Tensor& d_weight) {
  observe(of_elements(Op::rms_norm_backward, x),
          [&] { ForwardingBackend::rms_norm_backward(x, weight, epsilon, dy, write, dx, d_weight); });
}

void ObservedBackend::rotary_table(std::span<const Piece> pieces, double base, const Tensor& table) {
  observe(of_elements(Op::rotary_table, table), [&] { ForwardingBackend::rotary_table(pieces, base, table); });
}

void ObservedBackend::qkv_split_forward(const QkvSplit& split, const Tensor& qkv, const Tensor& q, const Tensor& kv) {
  observe(of_elements(Op::qkv_split_forward, qkv), [&] { ForwardingBackend::qkv_split_forward(split, qkv, q, kv); });
}

void ObservedBackend::qkv_split_backward(const QkvSplit& split, const Tensor& qkv, const Tensor& dq, const Tensor& dkv,
                                         const Tensor& d_qkv, const Tensor& d_q_norm, const Tensor& d_k_norm) {
  observe(of_elements(Op::qkv_split_backward, d_qkv),
          [&] { ForwardingBackend::qkv_split_backward(split, qkv, dq, dkv, d_qkv, d_q_norm, d_k_norm); });
}

void ObservedBackend::attention_start(const AttentionState& state) {
  observe(of_elements(Op::attention_start, state.output), [&] { ForwardingBackend::attention_start(state); });
}

void ObservedBackend::attention_forward(const AttentionStep& step, const Tensor& q, const Tensor& kv,
                                        const AttentionState& state) {
  observe(of_attention(Op::attention_forward, 4, step),
          [&] { ForwardingBackend::attention_forward(step, q, kv, state); });
}

void ObservedBackend::attention_finish(const HeadShape& shape, const AttentionState& state, const Tensor& output,
                                       const Tensor& lse) {
  observe(of_elements(Op::attention_finish, output),
          [&] { ForwardingBackend::attention_finish(shape, state, output, lse); });
}

void ObservedBackend::attention_delta(const HeadShape& shape, const Tensor& output, const Tensor& d_output,
                                      const Tensor& delta) {
  observe(of_elements(Op::attention_delta, output),
          [&] { ForwardingBackend::attention_delta(shape, output, d_output, delta); });
}

void ObservedBackend::attention_backward(const AttentionStep& step, const Tensor& q, const Tensor& kv,
                                         const AttentionGradient& gradient, const Tensor& dq, Write write,
                                         const Tensor& dkv) {
  observe(of_attention(Op::attention_backward, 10, step),
          [&] { ForwardingBackend::attention_backward(step, q, kv, gradient, dq, write, dkv); });
}

void ObservedBackend::swiglu_forward(const Tensor& gate_up, const Tensor& y) {
  observe(of_elements(Op::swiglu_forward, gate_up), [&] { ForwardingBackend::swiglu_forward(gate_up, y); });
}

void ObservedBackend::swiglu_backward(const Tensor& gate_up, const Tensor& dy, const Tensor& d_gate_up) {
  observe(of_elements(Op::swiglu_backward, gate_up),
          [&] { ForwardingBackend::swiglu_backward(gate_up, dy, d_gate_up); });
}

void ObservedBackend::embedding_forward(const Tensor& tokens, const Tensor& table, const Tensor& y) {
  observe(of_elements(Op::embedding_forward, y), [&] { ForwardingBackend::embedding_forward(tokens, table, y); });
}

void ObservedBackend::embedding_backward(const Tensor& tokens, const Tensor& dy, const Tensor& d_table) {
  observe(of_elements(Op::embedding_backward, dy), [&] { ForwardingBackend::embedding_backward(tokens, dy, d_table); });
}

void ObservedBackend::cross_entropy(const Tensor& logits, const Tensor& labels, CrossEntropy mode, float gradient_scale,
                                    const Tensor& losses) {
  observe(of_elements(Op::cross_entropy, logits),
          [&] { ForwardingBackend::cross_entropy(logits, labels, mode, gradient_scale, losses); });
}

void ObservedBackend::sum_of_squares(const Tensor& x, const Tensor& result) {
  observe(of_elements(Op::sum_of_squares, x), [&] { ForwardingBackend::sum_of_squares(x, result); });
}

void ObservedBackend::adamw(const AdamW& settings, const Tensor& gradient, const Tensor& weights,
                            const Tensor& first_moment, const Tensor& second_moment,
                            const Tensor& rounded) {
  observe(of_elements(Op::adamw, gradient),
          [&] { ForwardingBackend::adamw(settings, gradient, weights, first_moment, second_moment, rounded); });
}

}  // namespace ringlet
