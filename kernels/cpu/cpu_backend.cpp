#include "kernels/cpu/cpu_backend.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <cstring>
#include <limits>
#include <numeric>

#include "kernels/cpu/adamw.h"
#include "kernels/cpu/attention.h"
#include "kernels/cpu/bf16_storage.h"
#include "kernels/cpu/elementwise.h"
#include "kernels/cpu/embedding.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/loss.h"
#include "kernels/cpu/matmul.h"
#include "kernels/cpu/norm.h"
#include "kernels/cpu/rope.h"
#include "kernels/cpu/swiglu.h"
#include "kernels/cpu/thread_team.h"
#include "kernels/op_shapes.h"

namespace ringlet {
namespace {

/// Waking threads for fewer floats costs more than they save.
constexpr int64_t kLeastFloats = 1 << 14;
/// Stretches whose squares are summed on their own, whatever the number of threads.
constexpr int64_t kSumStretches = 16;
/// Columns are shared out in whole cache lines.
constexpr int64_t kLineFloats = 16;

/// The operations on f32; copies and lookups on bf16 too. Each is a check of its shapes and a call for each part
/// of its output; it is done when it returns.
class CpuBackend final : public Backend {
 public:
  CpuBackend(int64_t arena_bytes, CpuThreads threads, Trace& trace)
      : memory_(arena_bytes),
        arena_(memory_.data(), memory_.bytes()),
        scratch_(cpu_scratch_bytes(threads.count)),
        team_(threads.count, &trace, threads.first_core),
        trace_(trace) {}

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
    by_elements(to.size(), [&, flat = flat(to)](int64_t first, int64_t count) {
      cpu::fill(value, flat.slice(first, count));
    });
  }
  void copy(const Tensor& from, const Tensor& to) override {
    shapes::copy(from, to);
    by_elements(to.size(), [source = flat(from), target = flat(to)](int64_t first, int64_t count) {
      cpu::copy(source.slice(first, count), target.slice(first, count));
    });
  }
  void add(const Tensor& from, const Tensor& to) override {
    shapes::add(from, to);
    by_elements(to.size(), [source = flat(from), target = flat(to)](int64_t first, int64_t count) {
      cpu::add(source.slice(first, count), target.slice(first, count));
    });
  }
  void copy_rows(const Tensor& from, int64_t first_row, const Tensor& to) override {
    shapes::copy_rows(from, first_row, to);
    cpu::copy_rows(from, first_row, to);
  }
  void matmul(const Tensor& a, Transpose transpose_a, const Tensor& b, Transpose transpose_b,
              Write write, const Tensor& out) override {
    cpu::matmul(team_, scratch<float>(), a, transpose_a, b, transpose_b, write, out);
  }

  void rms_norm_forward(const Tensor& x, const Tensor& weight, float epsilon,
                        const Tensor& y) override {
    shapes::rms_norm_forward(x, weight, y);
    by_rows(x, [&](int64_t first, int64_t count) {
      cpu::rms_norm_forward(x.slice(first, count), weight, epsilon, y.slice(first, count));
    });
  }
  void rms_norm_backward(const Tensor& x, const Tensor& weight, float epsilon, const Tensor& dy,
                         Write write, const Tensor& dx, const Tensor& d_weight) override {
    shapes::rms_norm_backward(x, weight, dy, dx, d_weight);
    const bool together = team_.size() == 1;
    const std::span<float> scales = scratch<float>();
    for (int64_t at = 0; at < x.rows(); at += std::ssize(scales)) {
      const int64_t rows = std::min(std::ssize(scales), x.rows() - at);
      const Tensor xs = x.slice(at, rows), dys = dy.slice(at, rows), dxs = dx.slice(at, rows);
      by_rows(xs, [&](int64_t first, int64_t count) {
        cpu::rms_norm_backward(xs.slice(first, count), weight, epsilon, dys.slice(first, count), write,
                               dxs.slice(first, count), together ? d_weight : Tensor{},
                               scales.subspan(size_t(first), size_t(count)));
      });
      if (together) continue;
      team_.split(x.shape[1], kLineFloats, [&](int64_t first, int64_t count) {
        cpu::rms_norm_weight_gradient(xs, scales, dys, first, count, d_weight);
      });
    }
  }

  void rotary_table(std::span<const Piece> pieces, double base, const Tensor& table) override {
    shapes::rotary_table(pieces, table);
    team_.split(table.shape[1] / 2, 1, [&](int64_t first, int64_t count) {
      cpu::rotary_table(pieces, base, first, first + count, table);
    });
  }
  void qkv_split_forward(const QkvSplit& split, const Tensor& qkv, const Tensor& q,
                         const Tensor& kv) override {
    shapes::qkv_split_forward(split, qkv, q, kv);
    by_heads(split, [&](int64_t first, int64_t count) {
      cpu::qkv_split_forward(split, first, first + count, qkv, q, kv);
    });
  }
  void qkv_split_backward(const QkvSplit& split, const Tensor& qkv, const Tensor& dq,
                          const Tensor& dkv, const Tensor& d_qkv, const Tensor& d_q_norm,
                          const Tensor& d_k_norm) override {
    shapes::qkv_split_backward(split, qkv, dq, dkv, d_qkv, d_q_norm, d_k_norm);
    const auto [heads, kv_heads, head_dim] = split.shape;
    const bool normed = bool(split.q_norm);
    // A norm's weight serves all heads: each sums its own part, then they are added in order.
    const Tensor d_norms = normed ? scratch_matrix(heads + kv_heads, head_dim) : Tensor{};
    if (normed) cpu::fill(0, d_norms);
    by_heads(split, [&](int64_t first, int64_t count) {
      cpu::qkv_split_backward(split, first, first + count, qkv, dq, dkv, d_qkv, d_norms);
    });
    for (int64_t head = 0; normed && head < heads + kv_heads; ++head) {
      const Tensor& d_norm = head < heads ? d_q_norm : d_k_norm;
      cpu::add(d_norms.slice(head, 1), d_norm.reshaped({1, head_dim, 1, 1}));
    }
  }

  void attention_start(const AttentionState& state) override {
    shapes::attention_start(state);
    fill(0, state.output);
    fill(-std::numeric_limits<float>::infinity(), state.maximum);
    fill(0, state.sum);
  }
  void attention_forward(const AttentionStep& step, const Tensor& q, const Tensor& kv,
                         const AttentionState& state) override {
    shapes::attention_forward(step, q, kv, state);
    cpu::attention_forward(team_, step, q, kv, state);
  }
  void attention_finish(const HeadShape& shape, const AttentionState& state, const Tensor& output,
                        const Tensor& lse) override {
    shapes::attention_finish(shape, state, output, lse);
    team_.split(shape.heads, 1, [&](int64_t head, int64_t count) {
      cpu::attention_finish({count, 1, shape.head_dim},
                            {state.output.slice(head, count), state.maximum.slice(head, count),
                             state.sum.slice(head, count)},
                            output.columns(head * shape.head_dim, count * shape.head_dim),
                            lse.slice(head, count));
    });
  }
  void attention_delta(const HeadShape& shape, const Tensor& output, const Tensor& d_output,
                       const Tensor& delta) override {
    shapes::attention_delta(shape, output, d_output, delta);
    team_.split(shape.heads, 1, [&](int64_t head, int64_t count) {
      const int64_t first = head * shape.head_dim, width = count * shape.head_dim;
      cpu::attention_delta({count, 1, shape.head_dim}, output.columns(first, width),
                           d_output.columns(first, width), delta.slice(head, count));
    });
  }
  void attention_backward(const AttentionStep& step, const Tensor& q, const Tensor& kv,
                          const AttentionGradient& gradient, const Tensor& dq, Write write,
                          const Tensor& dkv) override {
    shapes::attention_backward(step, q, kv, gradient, dq, dkv);
    if (write == Write::set) fill(0, dkv);
    cpu::attention_backward(team_, scratch<int64_t>(), step, q, kv, gradient, dq, dkv);
  }

  void swiglu_forward(const Tensor& gate_up, const Tensor& y) override {
    shapes::swiglu_forward(gate_up, y);
    by_rows(gate_up, [&](int64_t first, int64_t count) {
      cpu::swiglu_forward(gate_up.slice(first, count), y.slice(first, count));
    });
  }
  void swiglu_backward(const Tensor& gate_up, const Tensor& dy, const Tensor& d_gate_up) override {
    shapes::swiglu_backward(gate_up, dy, d_gate_up);
    by_rows(gate_up, [&](int64_t first, int64_t count) {
      cpu::swiglu_backward(gate_up.slice(first, count), dy.slice(first, count),
                           d_gate_up.slice(first, count));
    });
  }

  void embedding_forward(const Tensor& tokens, const Tensor& table, const Tensor& y) override {
    shapes::embedding_forward(tokens, table, y);
    by_rows(y, [&](int64_t first, int64_t count) {
      cpu::embedding_forward(tokens.slice(first, count), table, y.slice(first, count));
    });
  }
  void embedding_backward(const Tensor& tokens, const Tensor& dy, const Tensor& d_table) override {
    shapes::embedding_backward(tokens, dy, d_table);
    team_.split(dy.shape[1], kLineFloats, [&](int64_t first, int64_t count) {
      cpu::embedding_backward(tokens, dy.columns(first, count), d_table.columns(first, count));
    });
  }
  void cross_entropy(const Tensor& logits, const Tensor& labels, CrossEntropy mode,
                     float gradient_scale, const Tensor& losses) override {
    shapes::cross_entropy(logits, labels, losses);
    by_rows(logits, [&](int64_t first, int64_t count) {
      cpu::cross_entropy(logits.slice(first, count), labels.slice(first, count), mode,
                         gradient_scale, losses.slice(first, count));
    });
  }
  void sum_of_squares(const Tensor& x, const Tensor& result) override {
    shapes::sum_of_squares(x, result);
    const std::span<const float> values = x.as<float>();
    std::array<double, kSumStretches> sums;
    team_.split(kSumStretches, x.size() < kLeastFloats ? kSumStretches : 1,
                [&](int64_t first, int64_t count) {
                  for (int64_t i = first; i < first + count; ++i) {
                    const int64_t begin = i * x.size() / kSumStretches,
                                  end = (i + 1) * x.size() / kSumStretches;
                    sums[size_t(i)] =
                        cpu::sum_of_squares(values.subspan(size_t(begin), size_t(end - begin)));
                  }
                });
    result.as<double>()[0] = std::accumulate(sums.begin(), sums.end(), 0.0);
  }
  void adamw(const AdamW& settings, const Tensor& gradient, const Tensor& weights,
             const Tensor& first_moment, const Tensor& second_moment, const Tensor& rounded) override {
    shapes::adamw(settings, gradient, weights, first_moment, second_moment, rounded);
    CHECK(!rounded, "adamw: rounding is the business of make_bf16_storage");
    by_elements(weights.size(), [&](int64_t first, int64_t count) {
      const auto part = [&](const Tensor& tensor) { return flat(tensor).slice(first, count); };
      cpu::adamw(settings, part(gradient), part(weights), part(first_moment), part(second_moment));
    });
  }

 private:
  void queue_wait(Event event) override {
    if (event.reached()) return;
    const auto start = std::chrono::steady_clock::now();
    event.wait();
    if (event.timeline->is_of_ranks()) trace_.add_exposed_wait(std::chrono::steady_clock::now() - start);
  }

  static Tensor flat(const Tensor& tensor) { return tensor.reshaped({tensor.size(), 1, 1, 1}); }

  template <class T>
  std::span<T> scratch() const {
    return {reinterpret_cast<T*>(scratch_.data()), size_t(scratch_.bytes()) / sizeof(T)};
  }
  Tensor scratch_matrix(int64_t rows, int64_t columns) const {
    CHECK(rows * columns <= std::ssize(scratch<float>()), rows, " x ", columns,
          " floats of scratch");
    return {scratch_.data(), Dtype::f32, {rows, columns, 1, 1}, columns};
  }

  template <class Body>
  void by_elements(int64_t size, const Body& body) {
    team_.split(size, kLeastFloats, body);
  }
  /// Rows as long as those of `matrix`.
  template <class Body>
  void by_rows(const Tensor& matrix, const Body& body) {
    team_.split(matrix.rows(), kLeastFloats / std::max<int64_t>(matrix.row_size(), 1) + 1, body);
  }
  /// Heads of q, keys and values.
  template <class Body>
  void by_heads(const QkvSplit& split, const Body& body) {
    const HeadShape& shape = split.shape;
    const int64_t heads = shape.heads + 2 * shape.kv_heads;
    team_.split(heads, split.rotary.size() < kLeastFloats / 4 ? heads : 1, body);
  }

  HostMemory memory_;
  Arena arena_;
  HostMemory scratch_;  // of one operation
  cpu::ThreadTeam team_;
  Trace& trace_;
};

}  // namespace

int64_t cpu_scratch_bytes(int threads) { return threads * cpu::kMatmulPanelFloats * int64_t(sizeof(float)); }

std::unique_ptr<Backend> make_cpu_backend(int64_t arena_bytes, Trace& trace, CpuThreads threads) {
  cpu::choose_isa_once();
  return make_bf16_storage(std::make_unique<CpuBackend>(arena_bytes, threads, trace));
}

}  // namespace ringlet
