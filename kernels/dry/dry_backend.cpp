#include "kernels/dry/dry_backend.h"

#include <algorithm>

#include "kernels/op_shapes.h"

namespace ringlet {
namespace {

/// An address that no processor lets a program touch, with as much room behind it: a touch is a
/// crash.
std::byte* untouchable_address() { return reinterpret_cast<std::byte*>(uintptr_t{1} << 55); }

class DryBackend final : public Backend {
 public:
  explicit DryBackend(int64_t arena_bytes) : arena_(untouchable_address(), arena_bytes) {}

  Arena& arena() override { return arena_; }
  Event record() override { return {}; }
  void synchronize() override {}

  void upload(std::span<const std::byte> host, const Tensor& to) override {
    shapes::upload(host, to);
  }
  void read(const Tensor& from, std::span<std::byte> host) override {
    shapes::read(from, host);
    std::ranges::fill(host, std::byte{0});
  }
  void fill(float, const Tensor& to) override { shapes::fill(to); }
  void copy(const Tensor& from, const Tensor& to) override { shapes::copy(from, to); }
  void add(const Tensor& from, const Tensor& to) override { shapes::add(from, to); }
  void copy_rows(const Tensor& from, int64_t first_row, const Tensor& to) override {
    shapes::copy_rows(from, first_row, to);
  }
  void matmul(const Tensor& a, Transpose transpose_a, const Tensor& b, Transpose transpose_b, Write,
              const Tensor& out) override {
    shapes::matmul(a, transpose_a, b, transpose_b, out);
  }

  void rms_norm_forward(const Tensor& x, const Tensor& weight, float, const Tensor& y) override {
    shapes::rms_norm_forward(x, weight, y);
  }
  void rms_norm_backward(const Tensor& x, const Tensor& weight, float, const Tensor& dy, Write,
                         const Tensor& dx, const Tensor& d_weight) override {
    shapes::rms_norm_backward(x, weight, dy, dx, d_weight);
  }
  void rotary_table(std::span<const Piece> pieces, double, const Tensor& table) override {
    shapes::rotary_table(pieces, table);
  }
  void qkv_split_forward(const QkvSplit& split, const Tensor& qkv, const Tensor& q,
                         const Tensor& kv) override {
    shapes::qkv_split_forward(split, qkv, q, kv);
  }
  void qkv_split_backward(const QkvSplit& split, const Tensor& qkv, const Tensor& dq,
                          const Tensor& dkv, const Tensor& d_qkv, const Tensor& d_q_norm,
                          const Tensor& d_k_norm) override {
    shapes::qkv_split_backward(split, qkv, dq, dkv, d_qkv, d_q_norm, d_k_norm);
  }

  void attention_start(const AttentionState& state) override { shapes::attention_start(state); }
  void attention_forward(const AttentionStep& step, const Tensor& q, const Tensor& kv,
                         const AttentionState& state) override {
    shapes::attention_forward(step, q, kv, state);
  }
  void attention_finish(const HeadShape& shape, const AttentionState& state, const Tensor& output,
                        const Tensor& lse) override {
    shapes::attention_finish(shape, state, output, lse);
  }
  void attention_delta(const HeadShape& shape, const Tensor& output, const Tensor& d_output,
                       const Tensor& delta) override {
    shapes::attention_delta(shape, output, d_output, delta);
  }
  void attention_backward(const AttentionStep& step, const Tensor& q, const Tensor& kv,
                          const AttentionGradient& gradient, const Tensor& dq, Write,
                          const Tensor& dkv) override {
    shapes::attention_backward(step, q, kv, gradient, dq, dkv);
  }

  void swiglu_forward(const Tensor& gate_up, const Tensor& y) override {
    shapes::swiglu_forward(gate_up, y);
  }
  void swiglu_backward(const Tensor& gate_up, const Tensor& dy, const Tensor& d_gate_up) override {
    shapes::swiglu_backward(gate_up, dy, d_gate_up);
  }
  void embedding_forward(const Tensor& tokens, const Tensor& table, const Tensor& y) override {
    shapes::embedding_forward(tokens, table, y);
  }
  void embedding_backward(const Tensor& tokens, const Tensor& dy, const Tensor& d_table) override {
    shapes::embedding_backward(tokens, dy, d_table);
  }
  void cross_entropy(const Tensor& logits, const Tensor& labels, CrossEntropy, float,
                     const Tensor& losses) override {
    shapes::cross_entropy(logits, labels, losses);
  }
  void sum_of_squares(const Tensor& x, const Tensor& result) override {
    shapes::sum_of_squares(x, result);
  }
  void adamw(const AdamW& settings, const Tensor& gradient, const Tensor& weights,
             const Tensor& first_moment, const Tensor& second_moment, const Tensor& rounded) override {
    shapes::adamw(settings, gradient, weights, first_moment, second_moment, rounded);
  }

 private:
  void queue_wait(Event event) override { event.wait(); }

  Arena arena_;
};

}  // namespace

std::unique_ptr<Backend> make_dry_backend(int64_t arena_bytes) { return std::make_unique<DryBackend>(arena_bytes); }

}  // namespace ringlet
