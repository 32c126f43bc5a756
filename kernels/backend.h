#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "kernels/arena.h"
#include "kernels/event.h"
#include "kernels/tensor.h"
#include "kernels/work_clock.h"

namespace ringlet {

enum class Transpose : uint8_t { no, yes };
enum class Write : uint8_t { set, add };  // what an operation does to its output

/// Heads of one attention layer. Query head h reads key-value head h / (heads / kv_heads).
struct HeadShape {
  int64_t heads = 1, kv_heads = 1, head_dim = 8;  // kv_heads divides heads; head_dim is a multiple of 8
  int64_t qkv_width() const { return (heads + 2 * kv_heads) * head_dim; }
  int64_t q_width() const { return heads * head_dim; }
};

/// One step of attention: one piece of this rank's queries on one piece of keys and values.
/// Query i sees key j when first_visible(i) <= position(j) <= position(i). The scores are scaled by
/// 1 / sqrt(head_dim). Tiles in which no pair is visible are skipped. Queries that see all keys may have other positions
/// than their own, as long as they come after the keys.
struct AttentionStep {
  HeadShape shape;
  Piece queries;  // rows first_row .. first_row + row_count of q, state, output, first_visible
  Piece keys;     // all rows of the kv tensor; its first_row is not used
  Tensor first_visible;  // i64 [all query rows], non-decreasing with the position
};

/// A softmax under way: un-normalised output [heads, rows, head_dim], maximum and sum [heads, rows], f32.
/// The maximum is that of the scaled scores times log2(e). Before the first step, and for a row that has seen
/// nothing: (0, -infinity, 0).
struct AttentionState {
  Tensor output, maximum, sum;
};

/// The gradient that flows in, and what the forward pass left behind, for all rows of the rank.
struct AttentionGradient {
  Tensor d_output;  // [rows, heads * head_dim], of the dtype of q
  Tensor lse;       // f32 [heads, rows], natural logarithm, over the whole ring; -infinity: saw nothing
  Tensor delta;     // f32 [heads, rows], from attention_delta
};

/// A fused projection [rows, q | k | v] taken apart: heads, rotary positions, optional QK-norm.
struct QkvSplit {
  HeadShape shape;
  std::span<const Piece> pieces;  // of the rank; the kv tensor is laid out piece by piece
  Tensor rotary;                  // f32 [rows, head_dim], from rotary_table
  Tensor q_norm, k_norm;          // [head_dim] each, or absent: no QK-norm
  float epsilon = 1e-6f;
};

struct AdamW {
  float learning_rate, beta1, beta2, epsilon, weight_decay;
  float gradient_scale;  // the gradient is multiplied by this first (clipping)
  int64_t step;          // counted from 1, for the bias correction
};

enum class CrossEntropy : uint8_t { loss_and_gradient, loss_only };

/// Every operation that a device offers. A rank owns one Backend, one compute queue, one Arena.
///
/// - Operations are asynchronous: they run in the order of the calls, at any time up to the next wait of the
///   host (`read`, `synchronize`). Tensors are captured by value, small structs too.
/// - They allocate nothing and throw Error when shapes or dtypes disagree.
/// - Activations, and the weights that meet them, are f32 or bf16, all of a call alike: they are called "x", "y", ... with
///   no dtype below. What is said to be f32 is f32 beside bf16 too: sums (softmax state, gradients of weights, dq and dkv),
///   statistics, losses. bf16 is storage: values are widened when read, computed in f32, rounded once (to nearest, ties to
///   even) when written; matrix units may multiply bf16 operands, with sums in f32.
/// - Tensors are contiguous unless said otherwise; [rows, n] may be a column slice where "strided" is
///   said. Zero rows are legal everywhere. Inputs and outputs do not overlap unless said.
/// - Results do not depend on the number of threads; equal calls give equal bits.
class Backend {
 public:
  virtual ~Backend() = default;
  virtual Arena& arena() = 0;

  // ---- order -------------------------------------------------------------------------------------------
  /// The point that the compute queue has when all calls up to here are done.
  virtual Event record() = 0;
  /// The compute queue goes on only when `event` has been reached. Does not stop the host (the CPU backend,
  /// whose queue is the host, sleeps). Memory that was in flight until then may be rewound: whatever uses it next
  /// stands behind the wait in the queue.
  void wait(Event event) {
    queue_wait(event);
    arena().release(event);
  }
  /// The host waits until the compute queue is empty.
  virtual void synchronize() = 0;
  /// Tells when this device does its work; must die before it. Absent: a call that has come back is done.
  virtual std::unique_ptr<WorkClock> make_work_clock() { return nullptr; }

  // ---- memory ------------------------------------------------------------------------------------------
  /// Host bytes to a contiguous tensor of the same size; they may be reused when the call returns.
  virtual void upload(std::span<const std::byte> host, const Tensor& to) = 0;
  /// A contiguous tensor to host bytes of the same size. Waits.
  virtual void read(const Tensor& from, std::span<std::byte> host) = 0;
  /// to: f32 or bf16.
  virtual void fill(float value, const Tensor& to) = 0;
  /// Same size and dtype, both contiguous.
  virtual void copy(const Tensor& from, const Tensor& to) = 0;
  /// to += from; f32, same size.
  virtual void add(const Tensor& from, const Tensor& to) = 0;
  /// from: [n, rows, width] into rows first_row ... of to: [n, more rows, width] (appends to a KV cache).
  virtual void copy_rows(const Tensor& from, int64_t first_row, const Tensor& to) = 0;

  // ---- matrix products ---------------------------------------------------------------------------------
  /// out [m, n] (strided) = or += op(a) [m, k] * op(b) [k, n]; a, b strided. out: of the dtype of a and b, or f32.
  /// 2 * m * n * k flops. On the CPU the bits of an element depend on its row of op(a), its column of op(b) and `out`
  /// alone: products may be cut by rows and columns. On CUDA they depend on the shapes too.
  virtual void matmul(const Tensor& a, Transpose transpose_a, const Tensor& b, Transpose transpose_b,
                      Write write, const Tensor& out) = 0;

  // ---- norms (RMSNorm, arXiv:1910.07467) -----------------------------------------------------------------
  /// y = x / sqrt(mean(x^2) + epsilon) * weight, row by row; x, y: [rows, width], weight: [width].
  virtual void rms_norm_forward(const Tensor& x, const Tensor& weight, float epsilon, const Tensor& y) = 0;
  /// dx is set or added to; d_weight: f32 [width] is added to.
  virtual void rms_norm_backward(const Tensor& x, const Tensor& weight, float epsilon, const Tensor& dy,
                                 Write write, const Tensor& dx, const Tensor& d_weight) = 0;

  // ---- rotary positions (arXiv:2104.09864), heads ------------------------------------------------------------
  /// table: f32 [rows, head_dim]: cos of the angles of a row's position in the first half, sin in the second;
  /// angle i = position * base^(-2i / head_dim), computed in double.
  virtual void rotary_table(std::span<const Piece> pieces, double base, const Tensor& table) = 0;
  /// qkv: [rows, qkv_width]. q: [heads, rows, head_dim]. kv: for each piece in turn
  /// [2, kv_heads, piece rows, head_dim], keys then values. QK-norm, if any, comes before the rotation.
  /// Element i is paired with i + head_dim / 2 (the convention of Hugging Face's Llama).
  virtual void qkv_split_forward(const QkvSplit& split, const Tensor& qkv, const Tensor& q,
                                 const Tensor& kv) = 0;
  /// d_qkv is set; d_q_norm, d_k_norm, f32, are added to. dq, dkv: f32. qkv: as in the forward pass, read only for QK-norm (may
  /// be absent without it). d_qkv may be qkv itself.
  virtual void qkv_split_backward(const QkvSplit& split, const Tensor& qkv, const Tensor& dq,
                                  const Tensor& dkv, const Tensor& d_qkv, const Tensor& d_q_norm,
                                  const Tensor& d_k_norm) = 0;

  // ---- attention (arXiv:2205.14135; on a ring, arXiv:2310.01889) -----------------------------------------
  // Reproducible: unstrided pieces may be cut at multiples of 64 positions without a change of bits, as long as each
  // query meets its keys from the last one downwards and each key its queries upwards. So steps go on with the sums
  // that they find in state, dq and dkv, tile by tile of 64. Not so by wgmma on CUDA: its forward pass keeps its bits at cuts of
  // 128, its gradients at none.
  /// state = (0, -infinity, 0).
  virtual void attention_start(const AttentionState& state) = 0;
  /// Folds one piece of keys and values into the running softmax: one step of the ring.
  /// q: [heads, rows, head_dim], all rows of the rank; kv: [2, kv_heads, kv_rows, head_dim].
  /// Cost: 4 * heads * head_dim flops per visible pair.
  virtual void attention_forward(const AttentionStep& step, const Tensor& q, const Tensor& kv,
                                 const AttentionState& state) = 0;
  /// output: [rows, heads * head_dim] = state.output / state.sum, lse: f32 [heads, rows]. A row that saw nothing
  /// gets output 0, lse -infinity.
  virtual void attention_finish(const HeadShape& shape, const AttentionState& state, const Tensor& output,
                                const Tensor& lse) = 0;
  /// delta: f32 [heads, rows] = sum over head_dim of d_output * output, both [rows, heads * head_dim].
  virtual void attention_delta(const HeadShape& shape, const Tensor& output, const Tensor& d_output,
                               const Tensor& delta) = 0;
  /// Adds this step's part to dq: f32 [heads, rows, head_dim]. dkv: f32 [2, kv_heads, kv_rows, head_dim] is set to this
  /// step's part, 0 for keys that nobody sees, or added to.
  /// Cost: 10 * heads * head_dim flops per visible pair.
  virtual void attention_backward(const AttentionStep& step, const Tensor& q, const Tensor& kv,
                                  const AttentionGradient& gradient, const Tensor& dq, Write write,
                                  const Tensor& dkv) = 0;

  // ---- the rest of a block (SwiGLU, arXiv:2002.05202) ---------------------------------------------------------
  /// gate_up: [rows, 2 * width], gate then up; y: [rows, width] = silu(gate) * up.
  virtual void swiglu_forward(const Tensor& gate_up, const Tensor& y) = 0;
  /// d_gate_up is set; it may be gate_up itself.
  virtual void swiglu_backward(const Tensor& gate_up, const Tensor& dy, const Tensor& d_gate_up) = 0;

  // ---- embedding, loss, optimizer ------------------------------------------------------------------------
  /// tokens: i32 [rows], in [0, vocabulary); table: [vocabulary, width]; y: [rows, width].
  virtual void embedding_forward(const Tensor& tokens, const Tensor& table, const Tensor& y) = 0;
  /// d_table: f32, is added to, in an order that the tokens alone decide.
  virtual void embedding_backward(const Tensor& tokens, const Tensor& dy, const Tensor& d_table) = 0;
  /// losses: f32 [rows] = -log softmax(logits)[label], 0 where label is -1. With a gradient, logits are overwritten by
  /// gradient_scale * (softmax - onehot), 0 where label is -1; without, their content is lost.
  /// logits: [rows, vocabulary]; labels: i32 [rows].
  virtual void cross_entropy(const Tensor& logits, const Tensor& labels, CrossEntropy mode,
                             float gradient_scale, const Tensor& losses) = 0;
  /// result: f64 [1] = sum of x^2, summed in double. x: f32.
  virtual void sum_of_squares(const Tensor& x, const Tensor& result) = 0;
  /// One AdamW step (arXiv:1711.05101) on flat f32 tensors of n elements: weights, first and second moment change.
  /// rounded: bf16 [n], set to the new weights; or absent.
  virtual void adamw(const AdamW& settings, const Tensor& gradient, const Tensor& weights,
                     const Tensor& first_moment, const Tensor& second_moment, const Tensor& rounded) = 0;

 private:
  /// What `wait` does to the compute queue.
  virtual void queue_wait(Event event) = 0;
};

/// Host values to a tensor.
template <class T>
void upload(Backend& device, std::span<const T> host, const Tensor& to) {
  CHECK(to.dtype == dtype_of<T>(), "upload of another dtype");
  device.upload(std::as_bytes(host), to);
}

/// A tensor's values on the host. Waits.
template <class T>
void read(Backend& device, const Tensor& from, std::span<T> host) {
  CHECK(from.dtype == dtype_of<T>(), "read of another dtype");
  device.read(from, std::as_writable_bytes(host));
}

}  // namespace ringlet
