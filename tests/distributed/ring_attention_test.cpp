// Ring attention of any size, layout, mask, head grouping and length must give what one device gives.
#include "model/ring_attention.h"

#include <gtest/gtest.h>

#include "kernels/comm/threads.h"
#include "kernels/random.h"
#include "tests/support/compare.h"
#include "tests/support/ring_case.h"

namespace ringlet::test {
namespace {

struct AttentionCase {
  HeadShape shape;
  Mask mask;
  int64_t length;
  std::vector<float> q, k, v, d_output;  // [length, heads or kv_heads, head_dim]
};

struct AttentionResult {
  std::vector<float> output, lse, dq, dk, dv;
};

std::vector<float> random_values(int64_t count, uint64_t stream) {
  const CounterRandom random(7, stream);
  std::vector<float> values(count);
  for (int64_t i = 0; i < count; ++i) values[i] = float(random.normal(i));
  return values;
}

AttentionCase make_case(const HeadShape& shape, const Mask& mask, int64_t length) {
  const int64_t q_size = length * shape.q_width(), kv_size = length * shape.kv_heads * shape.head_dim;
  return {shape, mask, length, random_values(q_size, 1), random_values(kv_size, 2),
          random_values(kv_size, 3), random_values(q_size, 4)};
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

std::vector<float> gather_q(const AttentionCase& c, const std::vector<Piece>& pieces, int64_t rows) {
  std::vector<float> q(rows * c.shape.q_width());
  for_each_q(pieces, c.shape, rows, [&](int64_t position, int64_t head, int64_t to) {
    for (int64_t d = 0; d < c.shape.head_dim; ++d)
      q[to + d] = c.q[(position * c.shape.heads + head) * c.shape.head_dim + d];
  });
  return q;
}

/// One rank's share of the whole attention, forward and backward, written into `result`.
void run_rank(const AttentionCase& c, const SequenceLayout& layout, RankContext context,
              AttentionResult& result) {
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

  const Tensor dy = put(d_output, allocate(row_shape, poison));
  const Tensor delta = allocate(lse.shape, poison);
  const Tensor dq = allocate(q_shape, 0), dkv = allocate({kv_size, 1, 1, 1}, 0);
  device.attention_delta(c.shape, output, dy, delta);
  ring_attention_backward(step, c.shape, q, kv_tensor, {dy, lse, delta}, dq, dkv);

  const std::vector<float> o = get(output), l = get(lse), gq = get(dq), gkv = get(dkv);
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

AttentionResult attend(const AttentionCase& c, Layout kind, int ring_size,
                       const MakeBackend& make_backend) {
  AttentionResult result{std::vector<float>(c.q.size()), std::vector<float>(c.length * c.shape.heads),
                         std::vector<float>(c.q.size()), std::vector<float>(c.k.size()),
                         std::vector<float>(c.k.size())};
  const SequenceLayout layout = make_layout(kind, c.length, ring_size);
  ThreadsOptions options;
  options.ranks = ring_size;
  run_ranks(options, [&](Comm& ring, Trace& trace) {
    const std::unique_ptr<Backend> device = make_backend(int64_t{1} << 30, trace);
    run_rank(c, layout, {*device, ring, trace}, result);
  });
  return result;
}

/// Dense softmax attention in double, position by position.
struct DenseResult {
  std::vector<double> output, lse, dq, dk, dv;
};

DenseResult attend_densely(const AttentionCase& c) {
  const HeadShape& s = c.shape;
  const int64_t D = s.head_dim, group = s.heads / s.kv_heads;
  DenseResult r{std::vector<double>(c.q.size()), std::vector<double>(c.length * s.heads),
                std::vector<double>(c.q.size()), std::vector<double>(c.k.size()),
                std::vector<double>(c.k.size())};
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

/// Comparing dQ and dK relative to nothing is meaningless where they vanish exactly (a lone key's
/// softmax has no gradient), so they are measured against the size of dV's terms there.
double gradient_error(const std::vector<float>& actual, const std::vector<double>& expected) {
  double difference = 0, norm = 0;
  for (size_t i = 0; i < actual.size(); ++i) {
    difference += (actual[i] - expected[i]) * (actual[i] - expected[i]);
    norm += expected[i] * expected[i];
  }
  return std::sqrt(difference) / std::sqrt(std::max(norm, 1e-3 * double(expected.size())));
}

void expect_equal(const AttentionResult& actual, const DenseResult& expected) {
  EXPECT_LE(error_of(actual.output, expected.output), kOutputTolerance);
  EXPECT_LE(error_of(actual.lse, expected.lse), kOutputTolerance);
  EXPECT_LE(gradient_error(actual.dq, expected.dq), kGradientTolerance);
  EXPECT_LE(gradient_error(actual.dk, expected.dk), kGradientTolerance);
  EXPECT_LE(gradient_error(actual.dv, expected.dv), kGradientTolerance);
}

std::vector<Mask> masks(int64_t length) {
  std::vector<Mask> all{Mask{}, Mask{{0}, 37}};
  Mask documents;
  for (int64_t start = 1; start < length; start = start * 2 + 5) documents.document_starts.push_back(start);
  all.push_back(documents);
  documents.window = 20;
  all.push_back(documents);
  return all;
}

class RingAttentionTest : public testing::TestWithParam<int64_t> {};

TEST_P(RingAttentionTest, EqualsOneDeviceInEveryLayoutMaskAndRing) {
  const int64_t length = GetParam();
  const std::vector<int> ring_sizes{1, 2, 3, 4, 5, 8};
  for (const HeadShape& shape : {HeadShape{2, 2, 16}, HeadShape{4, 2, 8}, HeadShape{3, 1, 8}}) {
    for (const Mask& mask : masks(length)) {
      const AttentionCase c = make_case(shape, mask, length);
      const DenseResult expected = attend_densely(c);
      for (const Layout layout : {Layout::contiguous, Layout::zigzag, Layout::striped}) {
        for (const int ring_size : ring_sizes) {
          SCOPED_TRACE(testing::Message()
                       << name_of(layout) << " R=" << ring_size << " T=" << length << " heads="
                       << shape.heads << '/' << shape.kv_heads << " documents="
                       << mask.document_starts.size() << " window=" << mask.window);
          expect_equal(attend(c, layout, ring_size, plain_backend), expected);
        }
      }
    }
  }
}
INSTANTIATE_TEST_SUITE_P(Lengths, RingAttentionTest,
                         testing::Values(1, 2, 7, 63, 64, 65, 257, 1000));

// Every wait that the schedule forgets shows up as a difference here: operations run late, sends are
// read late, inboxes are written late.
TEST(RingAttentionOrderTest, HoldsWhenTheDeviceRunsLate) {
  for (const Layout layout : {Layout::contiguous, Layout::zigzag, Layout::striped}) {
    for (const int ring_size : {1, 2, 3, 4, 5, 8}) {
      for (const int64_t length : {1, 2, 7, 63, 64, 65, 257}) {
        SCOPED_TRACE(testing::Message() << name_of(layout) << " R=" << ring_size << " T=" << length);
        const bool grouped = length % 2 == 1;
        const AttentionCase c = make_case(grouped ? HeadShape{4, 2, 8} : HeadShape{2, 2, 8},
                                          masks(length)[size_t(ring_size) % 4], length);
        expect_equal(attend(c, layout, ring_size, late_backend), attend_densely(c));
      }
    }
  }
}

TEST(RingAttentionErrorTest, DoesNotGrowWithTheRing) {
  const AttentionCase c = make_case({2, 1, 16}, Mask{}, 600);
  const DenseResult expected = attend_densely(c);
  for (const Layout layout : {Layout::contiguous, Layout::zigzag, Layout::striped}) {
    const AttentionResult two = attend(c, layout, 2, plain_backend);
    const AttentionResult eight = attend(c, layout, 8, plain_backend);
    EXPECT_LE(error_of(eight.output, expected.output), 2 * error_of(two.output, expected.output));
    EXPECT_LE(error_of(eight.dq, expected.dq), 2 * error_of(two.dq, expected.dq));
    EXPECT_LE(error_of(eight.dk, expected.dk), 2 * error_of(two.dk, expected.dk));
    EXPECT_LE(error_of(eight.dv, expected.dv), 2 * error_of(two.dv, expected.dv));
  }
}

}  // namespace
}  // namespace ringlet::test
