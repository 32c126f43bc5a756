#include "kernels/op_shapes.h"

#include <string>

namespace ringlet::shapes {
namespace {

std::string text_of(Dtype dtype, const Shape& shape) {
  std::string text = std::string(name_of(dtype)) + " [";
  for (size_t i = 0; i < shape.size(); ++i) text += (i > 0 ? ", " : "") + std::to_string(shape[i]);
  return text + ']';
}

/// What one operation asks of its tensors.
class Expect {
 public:
  explicit Expect(const char* operation) : operation_(operation) {}

  void contiguous(const char* name, const Tensor& tensor, Dtype dtype, const Shape& shape) const {
    strided(name, tensor, dtype, shape);
    CHECK(tensor.contiguous(), operation_, ": rows of ", name, " are apart: stride ",
          tensor.row_stride, " of a row of ", tensor.row_size());
  }

  void strided(const char* name, const Tensor& tensor, Dtype dtype, const Shape& shape) const {
    CHECK(tensor, operation_, ": ", name, " is absent");
    CHECK(tensor.dtype == dtype && tensor.shape == shape, operation_, ": ", name, " is ",
          text_of(tensor.dtype, tensor.shape), ", not ", text_of(dtype, shape));
    CHECK(tensor.rows() <= 1 || tensor.row_stride >= tensor.row_size(), operation_, ": rows of ",
          name, " overlap: stride ", tensor.row_stride, " of a row of ", tensor.row_size());
  }

  /// Contiguous activations: f32 or bf16. Returns which.
  Dtype activations(const char* name, const Tensor& tensor, const Shape& shape) const {
    CHECK(tensor, operation_, ": ", name, " is absent");
    CHECK(tensor.dtype == Dtype::f32 || tensor.dtype == Dtype::bf16, operation_, ": ", name, " is ",
          name_of(tensor.dtype), ", neither f32 nor bf16");
    contiguous(name, tensor, tensor.dtype, shape);
    return tensor.dtype;
  }

  /// f32, contiguous.
  void floats(const char* name, const Tensor& tensor, const Shape& shape) const {
    contiguous(name, tensor, Dtype::f32, shape);
  }

  /// Any shape that has `size` elements; f32, contiguous.
  void flat(const char* name, const Tensor& tensor, int64_t size) const {
    flat(name, tensor, Dtype::f32, size);
  }

  void heads(const HeadShape& shape) const {
    CHECK(shape.heads > 0 && shape.kv_heads > 0 && shape.heads % shape.kv_heads == 0, operation_,
          ": ", shape.kv_heads, " key-value heads for ", shape.heads, " heads");
    CHECK(shape.head_dim > 0 && shape.head_dim % 8 == 0 && shape.head_dim <= kMaxHeadDim,
          operation_, ": head_dim is ", shape.head_dim, ", not a multiple of 8 up to ",
          kMaxHeadDim);
  }

  void pieces(std::span<const Piece> pieces, int64_t rows) const {
    int64_t next = 0;
    for (const Piece& piece : pieces) {
      CHECK(piece.first_row == next && piece.row_count >= 0 && piece.stride > 0, operation_,
            ": a piece has rows ", piece.first_row, " + ", piece.row_count, ", stride ",
            piece.stride, "; row ", next, " is next");
      next += piece.row_count;
    }
    CHECK(next == rows, operation_, ": pieces of ", next, " rows for ", rows, " rows");
  }

  /// Any shape that has `size` elements; contiguous.
  void flat(const char* name, const Tensor& tensor, Dtype dtype, int64_t size) const {
    CHECK(tensor.size() == size, operation_, ": ", name, " has ", tensor.size(), " elements, not ",
          size);
    contiguous(name, tensor, dtype, tensor.shape);
  }

  /// Shapes that forward and backward share; returns the rows of the rank.
  int64_t attention(const AttentionStep& step, const Tensor& q, const Tensor& kv) const {
    const int64_t rows = q.shape[1];
    heads(step.shape);
    const Dtype dtype = activations("q", q, {step.shape.heads, rows, step.shape.head_dim, 1});
    contiguous("kv", kv, dtype, {2, step.shape.kv_heads, step.keys.row_count, step.shape.head_dim});
    contiguous("first_visible", step.first_visible, Dtype::i64, {rows, 1, 1, 1});
    const Piece& queries = step.queries;
    CHECK(queries.first_row >= 0 && queries.row_count >= 0 &&
              queries.first_row + queries.row_count <= rows,
          operation_, ": query rows ", queries.first_row, " + ", queries.row_count, " of ", rows);
    CHECK(queries.stride > 0 && step.keys.stride > 0, operation_, ": strides ", queries.stride,
          " and ", step.keys.stride);
    return rows;
  }

  void state(const AttentionState& state, const Shape& shape) const {
    floats("state.output", state.output, shape);
    floats("state.maximum", state.maximum, {shape[0], shape[1], 1, 1});
    floats("state.sum", state.sum, {shape[0], shape[1], 1, 1});
  }

 private:
  const char* operation_;
};

}  // namespace

void upload(std::span<const std::byte> host, const Tensor& to) {
  const Expect expect("upload");
  expect.contiguous("to", to, to.dtype, to.shape);
  CHECK(int64_t(host.size()) == to.bytes(), "upload: ", host.size(), " bytes to a tensor of ",
        to.bytes());
}

void read(const Tensor& from, std::span<std::byte> host) {
  const Expect expect("read");
  expect.contiguous("from", from, from.dtype, from.shape);
  CHECK(int64_t(host.size()) == from.bytes(), "read: ", host.size(), " bytes from a tensor of ",
        from.bytes());
}

void fill(const Tensor& to) { Expect("fill").activations("to", to, to.shape); }

void copy(const Tensor& from, const Tensor& to) {
  const Expect expect("copy");
  expect.contiguous("from", from, from.dtype, from.shape);
  expect.contiguous("to", to, from.dtype, to.shape);
  CHECK(from.size() == to.size(), "copy: ", from.size(), " elements to ", to.size());
}

void add(const Tensor& from, const Tensor& to) {
  const Expect expect("add");
  expect.floats("from", from, from.shape);
  expect.flat("to", to, from.size());
}

void copy_rows(const Tensor& from, int64_t first_row, const Tensor& to) {
  const Expect expect("copy_rows");
  const int64_t count = from.shape[0], width = from.shape[2];
  const Dtype dtype = expect.activations("from", from, {count, from.shape[1], width, 1});
  expect.contiguous("to", to, dtype, {count, to.shape[1], width, 1});
  CHECK(first_row >= 0 && first_row + from.shape[1] <= to.shape[1], "copy_rows: rows ", first_row,
        " + ", from.shape[1], " of ", to.shape[1]);
}

MatmulSizes matmul(const Tensor& a, Transpose transpose_a, const Tensor& b, Transpose transpose_b,
                   const Tensor& out) {
  const Expect expect("matmul");
  const int64_t m = out.shape[0], n = out.shape[1];
  const int64_t k = a.shape[transpose_a == Transpose::yes ? 0 : 1];
  const auto matrix = [](int64_t rows, int64_t columns, Transpose transpose) {
    return transpose == Transpose::yes ? Shape{columns, rows, 1, 1} : Shape{rows, columns, 1, 1};
  };
  CHECK(a.dtype == Dtype::f32 || a.dtype == Dtype::bf16, "matmul: a is ", name_of(a.dtype));
  const Dtype sum = out.dtype == Dtype::f32 ? Dtype::f32 : a.dtype;
  expect.strided("out", out, sum, {m, n, 1, 1});
  expect.strided("a", a, a.dtype, matrix(m, k, transpose_a));
  expect.strided("b", b, a.dtype, matrix(k, n, transpose_b));
  return {m, n, k};
}

void rms_norm_forward(const Tensor& x, const Tensor& weight, const Tensor& y) {
  const Expect expect("rms_norm_forward");
  const int64_t width = x.shape[1];
  const Dtype dtype = expect.activations("x", x, {x.rows(), width, 1, 1});
  expect.contiguous("weight", weight, dtype, {width, 1, 1, 1});
  expect.contiguous("y", y, dtype, x.shape);
}

void rms_norm_backward(const Tensor& x, const Tensor& weight, const Tensor& dy, const Tensor& dx,
                       const Tensor& d_weight) {
  const Expect expect("rms_norm_backward");
  const int64_t width = x.shape[1];
  const Dtype dtype = expect.activations("x", x, {x.rows(), width, 1, 1});
  expect.contiguous("weight", weight, dtype, {width, 1, 1, 1});
  expect.contiguous("dy", dy, dtype, x.shape);
  expect.contiguous("dx", dx, dtype, x.shape);
  expect.floats("d_weight", d_weight, weight.shape);
}

void rotary_table(std::span<const Piece> pieces, const Tensor& table) {
  const Expect expect("rotary_table");
  expect.floats("table", table, {table.rows(), table.shape[1], 1, 1});
  CHECK(table.shape[1] % 2 == 0, "rotary_table: head_dim ", table.shape[1], " is odd");
  expect.pieces(pieces, table.rows());
}

namespace {

void qkv_split(const Expect& expect, const QkvSplit& split, int64_t rows, Dtype dtype) {
  const Shape norm{split.shape.head_dim, 1, 1, 1};
  expect.heads(split.shape);
  expect.pieces(split.pieces, rows);
  expect.floats("rotary", split.rotary, {rows, split.shape.head_dim, 1, 1});
  if (split.q_norm || split.k_norm) {
    expect.contiguous("q_norm", split.q_norm, dtype, norm);
    expect.contiguous("k_norm", split.k_norm, dtype, norm);
  }
}

}  // namespace

void qkv_split_forward(const QkvSplit& split, const Tensor& qkv, const Tensor& q,
                       const Tensor& kv) {
  const Expect expect("qkv_split_forward");
  const HeadShape& shape = split.shape;
  const int64_t rows = qkv.rows();
  const Dtype dtype = expect.activations("qkv", qkv, {rows, shape.qkv_width(), 1, 1});
  qkv_split(expect, split, rows, dtype);
  expect.contiguous("q", q, dtype, {shape.heads, rows, shape.head_dim, 1});
  expect.flat("kv", kv, dtype, 2 * shape.kv_heads * rows * shape.head_dim);
}

void qkv_split_backward(const QkvSplit& split, const Tensor& qkv, const Tensor& dq,
                        const Tensor& dkv, const Tensor& d_qkv, const Tensor& d_q_norm,
                        const Tensor& d_k_norm) {
  const Expect expect("qkv_split_backward");
  const HeadShape& shape = split.shape;
  const int64_t rows = d_qkv.rows();
  const Dtype dtype = expect.activations("d_qkv", d_qkv, {rows, shape.qkv_width(), 1, 1});
  qkv_split(expect, split, rows, dtype);
  expect.floats("dq", dq, {shape.heads, rows, shape.head_dim, 1});
  expect.flat("dkv", dkv, 2 * shape.kv_heads * rows * shape.head_dim);
  if (!split.q_norm) return;
  expect.contiguous("qkv", qkv, dtype, d_qkv.shape);
  expect.floats("d_q_norm", d_q_norm, split.q_norm.shape);
  expect.floats("d_k_norm", d_k_norm, split.k_norm.shape);
}

void attention_start(const AttentionState& state) {
  const Shape& shape = state.output.shape;
  Expect("attention_start").state(state, {shape[0], shape[1], shape[2], 1});
}

void attention_forward(const AttentionStep& step, const Tensor& q, const Tensor& kv,
                       const AttentionState& state) {
  const Expect expect("attention_forward");
  expect.attention(step, q, kv);
  expect.state(state, q.shape);
}

void attention_finish(const HeadShape& shape, const AttentionState& state, const Tensor& output,
                      const Tensor& lse) {
  const Expect expect("attention_finish");
  const int64_t rows = output.rows();
  expect.heads(shape);
  expect.activations("output", output, {rows, shape.q_width(), 1, 1});
  expect.state(state, {shape.heads, rows, shape.head_dim, 1});
  expect.floats("lse", lse, {shape.heads, rows, 1, 1});
}

void attention_delta(const HeadShape& shape, const Tensor& output, const Tensor& d_output,
                     const Tensor& delta) {
  const Expect expect("attention_delta");
  const int64_t rows = output.rows();
  expect.heads(shape);
  const Dtype dtype = expect.activations("output", output, {rows, shape.q_width(), 1, 1});
  expect.contiguous("d_output", d_output, dtype, output.shape);
  expect.floats("delta", delta, {shape.heads, rows, 1, 1});
}

void attention_backward(const AttentionStep& step, const Tensor& q, const Tensor& kv,
                        const AttentionGradient& gradient, const Tensor& dq, const Tensor& dkv) {
  const Expect expect("attention_backward");
  const int64_t rows = expect.attention(step, q, kv);
  const Shape per_row{step.shape.heads, rows, 1, 1};
  expect.contiguous("d_output", gradient.d_output, q.dtype, {rows, step.shape.q_width(), 1, 1});
  expect.floats("lse", gradient.lse, per_row);
  expect.floats("delta", gradient.delta, per_row);
  expect.floats("dq", dq, q.shape);
  expect.floats("dkv", dkv, kv.shape);
}

void swiglu_forward(const Tensor& gate_up, const Tensor& y) {
  const Expect expect("swiglu_forward");
  const int64_t rows = y.rows(), width = y.shape[1];
  const Dtype dtype = expect.activations("y", y, {rows, width, 1, 1});
  expect.contiguous("gate_up", gate_up, dtype, {rows, 2 * width, 1, 1});
}

void swiglu_backward(const Tensor& gate_up, const Tensor& dy, const Tensor& d_gate_up) {
  const Expect expect("swiglu_backward");
  const int64_t rows = dy.rows(), width = dy.shape[1];
  const Dtype dtype = expect.activations("dy", dy, {rows, width, 1, 1});
  expect.contiguous("gate_up", gate_up, dtype, {rows, 2 * width, 1, 1});
  expect.contiguous("d_gate_up", d_gate_up, dtype, gate_up.shape);
}

void embedding_forward(const Tensor& tokens, const Tensor& table, const Tensor& y) {
  const Expect expect("embedding_forward");
  const int64_t rows = tokens.rows(), width = table.shape[1];
  expect.contiguous("tokens", tokens, Dtype::i32, {rows, 1, 1, 1});
  const Dtype dtype = expect.activations("table", table, {table.rows(), width, 1, 1});
  expect.contiguous("y", y, dtype, {rows, width, 1, 1});
}

void embedding_backward(const Tensor& tokens, const Tensor& dy, const Tensor& d_table) {
  const Expect expect("embedding_backward");
  const int64_t rows = tokens.rows(), width = d_table.shape[1];
  expect.contiguous("tokens", tokens, Dtype::i32, {rows, 1, 1, 1});
  expect.floats("d_table", d_table, {d_table.rows(), width, 1, 1});
  expect.activations("dy", dy, {rows, width, 1, 1});
}

void cross_entropy(const Tensor& logits, const Tensor& labels, const Tensor& losses) {
  const Expect expect("cross_entropy");
  const int64_t rows = logits.rows();
  expect.activations("logits", logits, {rows, logits.shape[1], 1, 1});
  expect.contiguous("labels", labels, Dtype::i32, {rows, 1, 1, 1});
  expect.floats("losses", losses, {rows, 1, 1, 1});
}

void sum_of_squares(const Tensor& x, const Tensor& result) {
  const Expect expect("sum_of_squares");
  expect.floats("x", x, x.shape);
  expect.contiguous("result", result, Dtype::f64, {1, 1, 1, 1});
}

void adamw(const AdamW& settings, const Tensor& gradient, const Tensor& weights,
           const Tensor& first_moment, const Tensor& second_moment, const Tensor& rounded) {
  const Expect expect("adamw");
  CHECK(settings.step >= 1, "adamw: step ", settings.step, " is not counted from 1");
  expect.floats("weights", weights, weights.shape);
  expect.flat("gradient", gradient, weights.size());
  expect.flat("first_moment", first_moment, weights.size());
  expect.flat("second_moment", second_moment, weights.size());
  if (rounded) expect.flat("rounded", rounded, Dtype::bf16, weights.size());
}

}  // namespace ringlet::shapes
