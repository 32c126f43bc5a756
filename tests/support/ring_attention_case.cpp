#include "tests/support/ring_attention_case.h"

#include <algorithm>
#include <cmath>

#include "kernels/comm/threads.h"
#include "kernels/random.h"
#include "model/ring_attention.h"

namespace ringlet::test {
namespace {

std::vector<float> random_values(int64_t count, uint64_t stream) {
  const CounterRandom random(7, stream);
  std::vector<float> values(count);
  for (int64_t i = 0; i < count; ++i) values[i] = float(random.normal(i));
  return values;
}

/// Moves one rank's part between [length, heads, head_dim] and the ring's layouts, element by element.
template <class Visit>
void for_each_kv(const std::vector<Piece>& pieces, const HeadShape& shape, const Visit& visit) {
  for (const Piece& piece : pieces) {
    const int64_t plane = shape.kv_heads * piece.row_count * shape.head_dim;
    const int64_t base = 2 * shape.kv_heads * shape.head_dim * piece.first_row;
    for (int64_t head = 0; head < shape.kv_heads; ++head)
      for (int64_t row = 0; row < piece.row_count; ++row)
        for (int64_t d = 0; d < shape.head_dim; ++d)
          visit((piece.position(row) * shape.kv_heads + head) * shape.head_dim + d,
                base + (head * piece.row_count + row) * shape.head_dim + d, plane);
  }
}

template <class Visit>
void for_each_q(const std::vector<Piece>& pieces, const HeadShape& shape, int64_t rows,
                const Visit& visit) {
  for (const Piece& piece : pieces)
    for (int64_t head = 0; head < shape.heads; ++head)
      for (int64_t i = 0; i < piece.row_count; ++i)
        visit(piece.position(i), head, (head * rows + piece.first_row + i) * shape.head_dim);
}

std::vector<float> gather_q(const RingAttentionCase& c, const std::vector<Piece>& pieces, int64_t rows) {
  std::vector<float> q(rows * c.shape.q_width());
  for_each_q(pieces, c.shape, rows, [&](int64_t position, int64_t head, int64_t to) {
    for (int64_t d = 0; d < c.shape.head_dim; ++d)
      q[to + d] = c.q[(position * c.shape.heads + head) * c.shape.head_dim + d];
  });
  return q;
}

std::vector<float> rounded(std::vector<float> values, Rounding rounding) {
  if (rounding != nullptr) std::ranges::transform(values, values.begin(), rounding);
  return values;
}

/// One rank's share of the whole attention, forward and backward, written into `result`.
void run_rank(const RingAttentionCase& c, const SequenceLayout& layout, RankContext context,
              Rounding stored, RingAttentionValues<float>& result) {
  const std::vector<Piece>& pieces = layout.ranks[context.ring.rank()];
  const int64_t rows = layout.rows(context.ring.rank());
  const std::vector<int32_t> tokens(rows, 0);
  Step step(context, {}, Pass::training, layout, c.mask, 1e4, c.shape.head_dim, tokens, tokens);
  Backend& device = context.device;
  const float poison = std::nanf("");
  const auto allocate = [&](Shape shape, float value) {
    const Tensor tensor = device.arena().allocate("test", Dtype::f32, shape);
    device.fill(value, tensor);
    return tensor;
  };
  const auto put = [&](const std::vector<float>& values, const Tensor& to) {
    upload<float>(device, values, to);
    return to;
  };
  const auto get = [&](const Tensor& from) {
    std::vector<float> values(from.size());
    read<float>(device, from, values);
    return values;
  };
  const Shape q_shape{c.shape.heads, rows, c.shape.head_dim, 1}, row_shape{rows, c.shape.q_width(), 1, 1};
  const int64_t kv_size = 2 * c.shape.kv_heads * c.shape.head_dim * rows;
  std::vector<float> kv(kv_size), d_output(rows * c.shape.q_width());
  for_each_kv(pieces, c.shape, [&](int64_t whole, int64_t part, int64_t plane) {
    kv[part] = c.k[whole];
    kv[part + plane] = c.v[whole];
  });
  for (const Piece& piece : pieces)
    for (int64_t i = 0; i < piece.row_count; ++i)
      std::copy_n(c.d_output.begin() + piece.position(i) * c.shape.q_width(), c.shape.q_width(),
                  d_output.begin() + (piece.first_row + i) * c.shape.q_width());
  const Tensor q = put(gather_q(c, pieces, rows), allocate(q_shape, poison));
  const Tensor kv_tensor = put(kv, allocate({kv_size, 1, 1, 1}, poison));
  const Tensor output = allocate(row_shape, poison);
  const Tensor lse = allocate({c.shape.heads, rows, 1, 1}, poison);
  ring_attention_forward(step, c.shape, q, kv_tensor, output, lse);
  // Not without need: reading makes the host wait for the device.
  if (stored != nullptr) put(rounded(get(output), stored), output);

  const Tensor dy = put(d_output, allocate(row_shape, poison));
  const Tensor delta = allocate(lse.shape, poison);
  const Tensor dq = allocate(q_shape, 0), dkv = allocate({kv_size, 1, 1, 1}, poison);
  device.attention_delta(c.shape, output, dy, delta);
  ring_attention_backward(step, c.shape, q, kv_tensor, {dy, lse, delta}, dq, dkv);

  const std::vector<float> o = get(output), l = get(lse);
  const std::vector<float> gq = rounded(get(dq), stored), gkv = rounded(get(dkv), stored);
  for_each_q(pieces, c.shape, rows, [&](int64_t position, int64_t head, int64_t from) {
    const int64_t to = (position * c.shape.heads + head) * c.shape.head_dim;
    std::copy_n(gq.begin() + from, c.shape.head_dim, result.dq.begin() + to);
    result.lse[position * c.shape.heads + head] = l[from / c.shape.head_dim];
  });
  for (const Piece& piece : pieces)
    for (int64_t i = 0; i < piece.row_count; ++i)
      std::copy_n(o.begin() + (piece.first_row + i) * c.shape.q_width(), c.shape.q_width(),
                  result.output.begin() + piece.position(i) * c.shape.q_width());
  for_each_kv(pieces, c.shape, [&](int64_t whole, int64_t part, int64_t plane) {
    result.dk[whole] = gkv[part];
    result.dv[whole] = gkv[part + plane];
  });
}

}  // namespace

std::vector<Mask> masks_for(int64_t length) {
  std::vector<Mask> all{Mask{}, Mask{{0}, 37}};
  Mask documents;
  for (int64_t start = 1; start < length; start = start * 2 + 5) documents.document_starts.push_back(start);
  all.push_back(documents);
  documents.window = 20;
  all.push_back(documents);
  return all;
}

RingAttentionCase random_attention(const HeadShape& shape, const Mask& mask, int64_t length) {
  const int64_t q_size = length * shape.q_width();
  const int64_t kv_size = length * shape.kv_heads * shape.head_dim;
  return {shape, mask, length, random_values(q_size, 1), random_values(kv_size, 2),
          random_values(kv_size, 3), random_values(q_size, 4)};
}

RingAttentionValues<float> attend_on_ring(const RingAttentionCase& c, Layout kind, int ring_size,
                                          const MakeBackend& make_backend, Rounding stored,
                                          int pieces) {
  RingAttentionValues<float> result(c);
  const SequenceLayout layout = make_layout(kind, c.length, ring_size, pieces);
  ThreadsOptions options;
  options.ranks = ring_size;
  run_ranks(options, [&](Comm& ring, Trace& trace) {
    const std::unique_ptr<Backend> device = make_backend(int64_t{1} << 30, trace);
    run_rank(c, layout, {*device, ring, trace}, stored, result);
  });
  return result;
}

RingAttentionValues<double> attend_densely(const RingAttentionCase& c) {
  const HeadShape& s = c.shape;
  const int64_t D = s.head_dim, group = s.heads / s.kv_heads;
  RingAttentionValues<double> r(c);
  const double scale = 1 / std::sqrt(double(D));
  std::vector<double> p(c.length), dp(c.length);
  for (int64_t i = 0; i < c.length; ++i)
    for (int64_t h = 0; h < s.heads; ++h) {
      const int64_t qi = (i * s.heads + h) * D, first = c.mask.first_visible(i);
      const auto kj = [&](int64_t j) { return (j * s.kv_heads + h / group) * D; };
      double largest = -1e300, sum = 0, delta = 0;
      for (int64_t j = first; j <= i; ++j) {
        p[j] = 0;
        for (int64_t d = 0; d < D; ++d) p[j] += scale * c.q[qi + d] * c.k[kj(j) + d];
        largest = std::max(largest, p[j]);
      }
      for (int64_t j = first; j <= i; ++j) sum += p[j] = std::exp(p[j] - largest);
      r.lse[i * s.heads + h] = largest + std::log(sum);
      for (int64_t j = first; j <= i; ++j) {
        p[j] /= sum;
        dp[j] = 0;
        for (int64_t d = 0; d < D; ++d) {
          r.output[qi + d] += p[j] * c.v[kj(j) + d];
          dp[j] += double(c.d_output[qi + d]) * c.v[kj(j) + d];
          r.dv[kj(j) + d] += p[j] * c.d_output[qi + d];
        }
        delta += p[j] * dp[j];
      }
      for (int64_t j = first; j <= i; ++j)
        for (int64_t d = 0; d < D; ++d) {
          r.dq[qi + d] += scale * p[j] * (dp[j] - delta) * c.k[kj(j) + d];
          r.dk[kj(j) + d] += scale * p[j] * (dp[j] - delta) * c.q[qi + d];
        }
    }
  return r;
}

}  // namespace ringlet::test
