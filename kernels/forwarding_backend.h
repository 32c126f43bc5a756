#pragma once

#include <memory>
#include <utility>

#include "kernels/backend.h"

namespace ringlet {

/// A device that passes every call on to another one: who watches or changes a call overrides it.
class ForwardingBackend : public Backend {
 public:
  /// `inner` must outlive this.
  explicit ForwardingBackend(Backend& inner) : inner_(inner) {}
  explicit ForwardingBackend(std::unique_ptr<Backend> inner)
      : owned_(std::move(inner)), inner_(*owned_) {}

  Arena& arena() override { return inner_.arena(); }
  Event record() override { return inner_.record(); }
  void synchronize() override { inner_.synchronize(); }
  std::unique_ptr<WorkClock> make_work_clock() override { return inner_.make_work_clock(); }
  void upload(std::span<const std::byte> host, const Tensor& to) override { inner_.upload(host, to); }
  void read(const Tensor& from, std::span<std::byte> host) override { inner_.read(from, host); }
  void fill(float value, const Tensor& to) override { inner_.fill(value, to); }
  void copy(const Tensor& from, const Tensor& to) override { inner_.copy(from, to); }
  void add(const Tensor& from, const Tensor& to) override { inner_.add(from, to); }
  void copy_rows(const Tensor& from, int64_t first_row, const Tensor& to) override {
    inner_.copy_rows(from, first_row, to);
  }
  void matmul(const Tensor& a, Transpose transpose_a, const Tensor& b, Transpose transpose_b,
              Write write, const Tensor& out) override {
    inner_.matmul(a, transpose_a, b, transpose_b, write, out);
  }
  void rms_norm_forward(const Tensor& x, const Tensor& weight, float epsilon,
                        const Tensor& y) override {
    inner_.rms_norm_forward(x, weight, epsilon, y);
  }
  void rms_norm_backward(const Tensor& x, const Tensor& weight, float epsilon, const Tensor& dy,
                         Write write, const Tensor& dx, const Tensor& d_weight) override {
    inner_.rms_norm_backward(x, weight, epsilon, dy, write, dx, d_weight);
  }
  void rotary_table(std::span<const Piece> pieces, double base, const Tensor& table) override {
    inner_.rotary_table(pieces, base, table);
  }
  void qkv_split_forward(const QkvSplit& split, const Tensor& qkv, const Tensor& q,
                         const Tensor& kv) override {
    inner_.qkv_split_forward(split, qkv, q, kv);
  }
  void qkv_split_backward(const QkvSplit& split, const Tensor& qkv, const Tensor& dq,
                          const Tensor& dkv, const Tensor& d_qkv, const Tensor& d_q_norm,
                          const Tensor& d_k_norm) override {
    inner_.qkv_split_backward(split, qkv, dq, dkv, d_qkv, d_q_norm, d_k_norm);
  }
  void attention_start(const AttentionState& state) override { inner_.attention_start(state); }
  void attention_forward(const AttentionStep& step, const Tensor& q, const Tensor& kv,
                         const AttentionState& state) override {
    inner_.attention_forward(step, q, kv, state);
  }
  void attention_finish(const HeadShape& shape, const AttentionState& state, const Tensor& output,
                        const Tensor& lse) override {
    inner_.attention_finish(shape, state, output, lse);
  }
  void attention_delta(const HeadShape& shape, const Tensor& output, const Tensor& d_output,
                       const Tensor& delta) override {
    inner_.attention_delta(shape, output, d_output, delta);
  }
  void attention_backward(const AttentionStep& step, const Tensor& q, const Tensor& kv,
                          const AttentionGradient& gradient, const Tensor& dq, Write write,
                          const Tensor& dkv) override {
    inner_.attention_backward(step, q, kv, gradient, dq, write, dkv);
  }
  void swiglu_forward(const Tensor& gate_up, const Tensor& y) override {
    inner_.swiglu_forward(gate_up, y);
  }
  void swiglu_backward(const Tensor& gate_up, const Tensor& dy, const Tensor& d_gate_up) override {
    inner_.swiglu_backward(gate_up, dy, d_gate_up);
  }
  void embedding_forward(const Tensor& tokens, const Tensor& table, const Tensor& y) override {
    inner_.embedding_forward(tokens, table, y);
  }
  void embedding_backward(const Tensor& tokens, const Tensor& dy, const Tensor& d_table) override {
    inner_.embedding_backward(tokens, dy, d_table);
  }
  void cross_entropy(const Tensor& logits, const Tensor& labels, CrossEntropy mode,
                     float gradient_scale, const Tensor& losses) override {
    inner_.cross_entropy(logits, labels, mode, gradient_scale, losses);
  }
  void sum_of_squares(const Tensor& x, const Tensor& result) override {
    inner_.sum_of_squares(x, result);
  }
  void adamw(const AdamW& settings, const Tensor& gradient, const Tensor& weights,
             const Tensor& first_moment, const Tensor& second_moment, const Tensor& rounded) override {
    inner_.adamw(settings, gradient, weights, first_moment, second_moment, rounded);
  }

 protected:
  void queue_wait(Event event) override { inner_.wait(event); }

 private:
  std::unique_ptr<Backend> owned_;  // or absent
  Backend& inner_;
};

}  // namespace ringlet
