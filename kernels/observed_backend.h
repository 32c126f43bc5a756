#pragma once

#include <chrono>

#include "kernels/forwarding_backend.h"
#include "kernels/op_call.h"

namespace ringlet {

/// Who wants to know what a device is asked to do.
class OpObserver {
 public:
  virtual ~OpObserver() = default;
  /// A call is about to be made.
  virtual void before_call(const OpCall&) {}
  /// A call came back after `took`: on a synchronous device its time, on others a WorkClock tells that.
  virtual void on_call(const OpCall& call, std::chrono::nanoseconds took) = 0;
  /// The compute queue was told to wait for `event`.
  virtual void on_wait(Event event) = 0;
};

/// A device whose calls an observer sees. Both must outlive it.
class ObservedBackend final : public ForwardingBackend {
 public:
  ObservedBackend(Backend& inner, OpObserver& observer) : ForwardingBackend(inner), observer_(observer) {}

  void upload(std::span<const std::byte> host, const Tensor& to) override;
  void read(const Tensor& from, std::span<std::byte> host) override;
  void fill(float value, const Tensor& to) override;
  void copy(const Tensor& from, const Tensor& to) override;
  void add(const Tensor& from, const Tensor& to) override;
  void matmul(const Tensor& a, Transpose transpose_a, const Tensor& b, Transpose transpose_b,
              Write write, const Tensor& out) override;
  void rms_norm_forward(const Tensor& x, const Tensor& weight, float epsilon, const Tensor& y) override;
  void rms_norm_backward(const Tensor& x, const Tensor& weight, float epsilon, const Tensor& dy,
                         Write write, const Tensor& dx, const Tensor& d_weight) override;
  void rotary_table(std::span<const Piece> pieces, double base, const Tensor& table) override;
  void qkv_split_forward(const QkvSplit& split, const Tensor& qkv, const Tensor& q,
                         const Tensor& kv) override;
  void qkv_split_backward(const QkvSplit& split, const Tensor& qkv, const Tensor& dq, const Tensor& dkv,
                          const Tensor& d_qkv, const Tensor& d_q_norm, const Tensor& d_k_norm) override;
  void attention_start(const AttentionState& state) override;
  void attention_forward(const AttentionStep& step, const Tensor& q, const Tensor& kv,
                         const AttentionState& state) override;
  void attention_finish(const HeadShape& shape, const AttentionState& state, const Tensor& output,
                        const Tensor& lse) override;
  void attention_delta(const HeadShape& shape, const Tensor& output, const Tensor& d_output,
                       const Tensor& delta) override;
  void attention_backward(const AttentionStep& step, const Tensor& q, const Tensor& kv,
                          const AttentionGradient& gradient, const Tensor& dq, Write write,
                          const Tensor& dkv) override;
  void swiglu_forward(const Tensor& gate_up, const Tensor& y) override;
  void swiglu_backward(const Tensor& gate_up, const Tensor& dy, const Tensor& d_gate_up) override;
  void embedding_forward(const Tensor& tokens, const Tensor& table, const Tensor& y) override;
  void embedding_backward(const Tensor& tokens, const Tensor& dy, const Tensor& d_table) override;
  void cross_entropy(const Tensor& logits, const Tensor& labels, CrossEntropy mode, float gradient_scale,
                     const Tensor& losses) override;
  void sum_of_squares(const Tensor& x, const Tensor& result) override;
  void adamw(const AdamW& settings, const Tensor& gradient, const Tensor& weights,
             const Tensor& first_moment, const Tensor& second_moment, const Tensor& rounded) override;

 private:
  template <class Run>
  void observe(const OpCall& call, const Run& run) {
    observer_.before_call(call);
    const auto start = std::chrono::steady_clock::now();
    run();
    observer_.on_call(call, std::chrono::steady_clock::now() - start);
  }
  void queue_wait(Event event) override {
    ForwardingBackend::queue_wait(event);
    observer_.on_wait(event);
  }

  OpObserver& observer_;
};

}  // namespace ringlet
