#include "kernels/cpu/cpu_backend.h"

#include <chrono>
#include <cstring>

#include "kernels/cpu/adamw.h"
#include "kernels/cpu/attention.h"
#include "kernels/cpu/elementwise.h"
#include "kernels/cpu/embedding.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/loss.h"
#include "kernels/cpu/matmul.h"
#include "kernels/cpu/norm.h"
#include "kernels/cpu/rope.h"
#include "kernels/cpu/swiglu.h"
#include "kernels/op_shapes.h"

namespace ringlet {
namespace {

/// Each operation is a check of its shapes and a call; it is done when the call returns.
class CpuBackend final : public Backend {
 public:
  CpuBackend(int64_t arena_bytes, Trace& trace)
      : memory_(arena_bytes), arena_(memory_.data(), memory_.bytes()), trace_(trace) {}

  Arena& arena() override { return arena_; }
  Event record() override { return {}; }
  void synchronize() override {}

  void upload(std::span<const std::byte> host, const Tensor& to) override {
    shapes::upload(host, to);
    if (!host.empty()) std::memcpy(to.data, host.data(), host.size());
  }
  void read(const Tensor& from, std::span<std::byte> host) override {
    shapes::read(from, host);
    if (!host.empty()) std::memcpy(host.data(), from.data, host.size());
  }
  void fill(float value, const Tensor& to) override {
    shapes::fill(to);
    cpu::fill(value, to);
  }
  void copy(const Tensor& from, const Tensor& to) override {
    shapes::copy(from, to);
    cpu::copy(from, to);
  }
  void add(const Tensor& from, const Tensor& to) override {
    shapes::add(from, to);
    cpu::add(from, to);
  }
  void copy_rows(const Tensor& from, int64_t first_row, const Tensor& to) override {
    shapes::copy_rows(from, first_row, to);
    cpu::copy_rows(from, first_row, to);
  }
  void matmul(const Tensor& a, Transpose transpose_a, const Tensor& b, Transpose transpose_b,
              Write write, const Tensor& out) override {
    cpu::matmul(a, transpose_a, b, transpose_b, write, out);
  }

  void rms_norm_forward(const Tensor& x, const Tensor& weight, float epsilon,
                        const Tensor& y) override {
    shapes::rms_norm_forward(x, weight, y);
    cpu::rms_norm_forward(x, weight, epsilon, y);
  }
  void rms_norm_backward(const Tensor& x, const Tensor& weight, float epsilon, const Tensor& dy,
                         Write write, const Tensor& dx, const Tensor& d_weight) override {
    shapes::rms_norm_backward(x, weight, dy, dx, d_weight);
    cpu::rms_norm_backward(x, weight, epsilon, dy, write, dx, d_weight);
  }

  void rotary_table(std::span<const Piece> pieces, double base, const Tensor& table) override {
    shapes::rotary_table(pieces, table);
    cpu::rotary_table(pieces, base, table);
  }
  void qkv_split_forward(const QkvSplit& split, const Tensor& qkv, const Tensor& q,
                         const Tensor& kv) override {
    shapes::qkv_split_forward(split, qkv, q, kv);
    cpu::qkv_split_forward(split, qkv, q, kv);
  }
  void qkv_split_backward(const QkvSplit& split, const Tensor& qkv, const Tensor& dq,
                          const Tensor& dkv, const Tensor& d_qkv, const Tensor& d_q_norm,
                          const Tensor& d_k_norm) override {
    shapes::qkv_split_backward(split, qkv, dq, dkv, d_qkv, d_q_norm, d_k_norm);
    cpu::qkv_split_backward(split, qkv, dq, dkv, d_qkv, d_q_norm, d_k_norm);
  }

  void attention_start(const AttentionState& state) override {
    shapes::attention_start(state);
    cpu::attention_start(state);
  }
  void attention_forward(const AttentionStep& step, const Tensor& q, const Tensor& kv,
                         const AttentionState& state) override {
    shapes::attention_forward(step, q, kv, state);
    cpu::attention_forward(step, q, kv, state);
  }
  void attention_finish(const HeadShape& shape, const AttentionState& state, const Tensor& output,
                        const Tensor& lse) override {
    shapes::attention_finish(shape, state, output, lse);
    cpu::attention_finish(shape, state, output, lse);
  }
  void attention_delta(const HeadShape& shape, const Tensor& output, const Tensor& d_output,
                       const Tensor& delta) override {
    shapes::attention_delta(shape, output, d_output, delta);
    cpu::attention_delta(shape, output, d_output, delta);
  }
  void attention_backward(const AttentionStep& step, const Tensor& q, const Tensor& kv,
                          const AttentionGradient& gradient, const Tensor& dq,
                          const Tensor& dkv) override {
    shapes::attention_backward(step, q, kv, gradient, dq, dkv);
    cpu::attention_backward(step, q, kv, gradient, dq, dkv);
  }

  void swiglu_forward(const Tensor& gate_up, const Tensor& y) override {
    shapes::swiglu_forward(gate_up, y);
    cpu::swiglu_forward(gate_up, y);
  }
  void swiglu_backward(const Tensor& gate_up, const Tensor& dy, const Tensor& d_gate_up) override {
    shapes::swiglu_backward(gate_up, dy, d_gate_up);
    cpu::swiglu_backward(gate_up, dy, d_gate_up);
  }

  void embedding_forward(const Tensor& tokens, const Tensor& table, const Tensor& y) override {
    shapes::embedding_forward(tokens, table, y);
    cpu::embedding_forward(tokens, table, y);
  }
  void embedding_backward(const Tensor& tokens, const Tensor& dy, const Tensor& d_table) override {
    shapes::embedding_backward(tokens, dy, d_table);
    cpu::embedding_backward(tokens, dy, d_table);
  }
  void cross_entropy(const Tensor& logits, const Tensor& labels, CrossEntropy mode,
                     float gradient_scale, const Tensor& losses) override {
    shapes::cross_entropy(logits, labels, losses);
    cpu::cross_entropy(logits, labels, mode, gradient_scale, losses);
  }
  void sum_of_squares(const Tensor& x, const Tensor& result) override {
    shapes::sum_of_squares(x, result);
    cpu::sum_of_squares(x, result);
  }
  void adamw(const AdamW& settings, const Tensor& gradient, const Tensor& weights,
             const Tensor& first_moment, const Tensor& second_moment) override {
    shapes::adamw(settings, gradient, weights, first_moment, second_moment);
    cpu::adamw(settings, gradient, weights, first_moment, second_moment);
  }

 private:
  void queue_wait(Event event) override {
    if (event.reached()) return;
    const auto start = std::chrono::steady_clock::now();
    event.wait();
    trace_.add_exposed_wait(std::chrono::steady_clock::now() - start);
  }

  HostMemory memory_;
  Arena arena_;
  Trace& trace_;
};

}  // namespace

std::unique_ptr<Backend> make_cpu_backend(int64_t arena_bytes, Trace& trace) {
  cpu::choose_isa_once();
  return std::make_unique<CpuBackend>(arena_bytes, trace);
}

}  // namespace ringlet
