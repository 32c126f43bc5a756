#include <gtest/gtest.h>
#include <hwy/highway.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <utility>

#include "tests/support/attention_reference.h"
#include "tests/support/compare.h"
#include "tests/support/host_tensor.h"

namespace ringlet::test {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct Result {
  std::vector<float> output, lse, state_output, maximum, sum, dq;
  std::vector<float> dk, dv;  // [kv_heads, keys, head_dim]
};

/// The tensors of a case on a device, and the operations on them.
class AttentionRun {
 public:
  AttentionRun(Bench& bench, const AttentionCase& c)
      : bench_(bench), c_(c), scope_(bench.device->arena()) {
    const int64_t rows = int64_t(positions_of(c.queries).size()), n = c.shape.head_dim;
    q = bench.put(c.q(), {c.shape.heads, rows, n, 1});
    d_output = bench.put(c.d_output(), {rows, c.shape.q_width(), 1, 1});
    first_visible = bench.put(c.first_visible_of_rows(), {rows, 1, 1, 1});
    state = {bench.poisoned({c.shape.heads, rows, n, 1}),
             bench.poisoned({c.shape.heads, rows, 1, 1}),
             bench.poisoned({c.shape.heads, rows, 1, 1})};
    output = bench.poisoned({rows, c.shape.q_width(), 1, 1});
    lse = bench.poisoned({c.shape.heads, rows, 1, 1});
    delta = bench.poisoned({c.shape.heads, rows, 1, 1});
    dq = bench.put(std::vector<float>(q.size()), q.shape);
    for (const Piece& piece : c.keys) {
      std::vector<float> both = c.k({piece});
      const std::vector<float> values = c.v({piece});
      both.insert(both.end(), values.begin(), values.end());
      kv.push_back(bench.put(both, {2, c.shape.kv_heads, piece.row_count, n}));
      write_.push_back(dkv.size() % 2 == 0 ? Write::set : Write::add);
      dkv.push_back(write_.back() == Write::set
                        ? bench.poisoned(kv.back().shape)
                        : bench.put(std::vector<float>(both.size()), kv.back().shape));
    }
    bench.device->attention_start(state);
  }

  void forward(const std::vector<size_t>& key_order) {
    for (const size_t key : key_order) {
      for (const Piece& queries : c_.queries) {
        bench_.device->attention_forward(step(queries, key), q, kv[key], state);
      }
    }
    bench_.device->attention_finish(c_.shape, state, output, lse);
  }

  void backward(const std::vector<size_t>& key_order) {
    bench_.device->attention_delta(c_.shape, output, d_output, delta);
    for (const size_t key : key_order) {
      for (const Piece& queries : c_.queries) {
        bench_.device->attention_backward(step(queries, key), q, kv[key], {d_output, lse, delta}, dq,
                                          std::exchange(write_[key], Write::add), dkv[key]);
      }
    }
  }

  Result result() {
    Result r{bench_.get(output),
             bench_.get(lse),
             bench_.get(state.output),
             bench_.get(state.maximum),
             bench_.get(state.sum),
             bench_.get(dq),
             {},
             {}};
    std::vector<std::vector<float>> parts;
    for (const Tensor& part : dkv) parts.push_back(bench_.get(part));
    for (int64_t half = 0; half < 2; ++half) {
      for (int64_t head = 0; head < c_.shape.kv_heads; ++head) {
        for (const std::vector<float>& part : parts) {
          const auto block = int64_t(part.size()) / (2 * c_.shape.kv_heads);
          const auto begin = part.begin() + (half * c_.shape.kv_heads + head) * block;
          std::vector<float>& to = half == 0 ? r.dk : r.dv;
          to.insert(to.end(), begin, begin + block);
        }
      }
    }
    return r;
  }

  Tensor q, d_output, first_visible, output, lse, delta, dq;
  AttentionState state;
  std::vector<Tensor> kv, dkv;

 private:
  AttentionStep step(const Piece& queries, size_t key) const {
    return {c_.shape, queries, c_.keys[key], first_visible};
  }

  /// The gradients of every other piece are set by the first queries, wherever those are; all else is added.
  std::vector<Write> write_;
  Bench& bench_;
  AttentionCase c_;
  ArenaScope scope_;
};

/// Key pieces from the last one down.
std::vector<size_t> downwards(const AttentionCase& c) {
  std::vector<size_t> order(c.keys.size());
  std::iota(order.rbegin(), order.rend(), size_t{0});
  return order;
}

Result run(Bench& bench, const AttentionCase& c, const std::vector<size_t>& key_order) {
  AttentionRun layer(bench, c);
  layer.forward(key_order);
  layer.backward(key_order);
  return layer.result();
}

/// Rows that saw nothing have -infinity in both, or the error is NaN.
double lse_error(const std::vector<float>& actual, const std::vector<double>& expected) {
  std::vector<double> a, b;
  for (size_t i = 0; i < expected.size(); ++i) {
    const bool same = std::isinf(expected[i]) && double(actual[i]) == expected[i];
    a.push_back(same ? 0 : actual[i]);
    b.push_back(same ? 0 : expected[i]);
  }
  return error_of(a, b);
}

void expect_close(const Result& actual, const ReferenceResult& expected) {
  EXPECT_LE(error_of(actual.output, expected.output), kOutputTolerance);
  EXPECT_LE(lse_error(actual.lse, expected.lse), kOutputTolerance);
  EXPECT_LE(error_of(actual.dq, expected.dq), kGradientTolerance);
  EXPECT_LE(error_of(actual.dk, expected.dk), kGradientTolerance);
  EXPECT_LE(error_of(actual.dv, expected.dv), kGradientTolerance);
}

void expect_equals_reference(Bench& bench, const AttentionCase& c) {
  expect_close(run(bench, c, downwards(c)), attention_reference(c.reference_input()));
}

/// The same bits; NaN is never expected here.
void expect_same_bits(const Result& actual, const Result& expected) {
  EXPECT_TRUE(actual.state_output == expected.state_output);
  EXPECT_TRUE(actual.maximum == expected.maximum);
  EXPECT_TRUE(actual.sum == expected.sum);
  EXPECT_TRUE(actual.output == expected.output);
  EXPECT_TRUE(actual.lse == expected.lse);
  EXPECT_TRUE(actual.dq == expected.dq);
  EXPECT_TRUE(actual.dk == expected.dk);
  EXPECT_TRUE(actual.dv == expected.dv);
}

const std::vector<HeadShape> kHeadShapes = {{2, 2, 8}, {4, 2, 8}, {3, 1, 8}};  // MHA, GQA, MQA

HeadShape with_head_dim(HeadShape shape, int64_t head_dim) {
  shape.head_dim = head_dim;
  return shape;
}

/// Every test runs once for each instruction set that this processor and this program have.
class AttentionTest : public testing::TestWithParam<int64_t> {
 protected:
  void SetUp() override { hwy::SetSupportedTargetsForTest(GetParam()); }
  void TearDown() override { hwy::SetSupportedTargetsForTest(0); }
  Bench bench;
};
INSTANTIATE_TEST_SUITE_P(Isa, AttentionTest, testing::ValuesIn(hwy::SupportedAndGeneratedTargets()),
                         [](const auto& isa) { return std::string(hwy::TargetName(isa.param)); });

TEST_P(AttentionTest, EqualsReferenceForEveryShape) {
  for (const HeadShape& heads : kHeadShapes) {
    for (const int64_t head_dim : {8, 16, 32, 40, 64, 128}) {
      for (const int64_t length : {1, 2, 7, 63, 64, 65, 130, 257}) {
        SCOPED_TRACE(testing::Message() << heads.heads << '/' << heads.kv_heads << " heads of "
                                        << head_dim << ", " << length << " rows");
        expect_equals_reference(bench, one_piece(with_head_dim(heads, head_dim), length));
      }
    }
  }
}

TEST_P(AttentionTest, LongestHeads) {
  expect_equals_reference(bench, one_piece({2, 1, 256}, 130));
  expect_equals_reference(bench, one_piece({1, 1, 512}, 70));
  AttentionCase too_long = one_piece({1, 1, 520}, 1);
  EXPECT_THROW(run(bench, too_long, {0}), Error);
}

TEST_P(AttentionTest, QueriesFromTheMiddleOfTheSequence) {
  AttentionCase c = one_piece({2, 1, 32}, 200);
  c.queries = {{117, 1, 0, 83}};
  expect_equals_reference(bench, c);
  c.queries = {{199, 1, 0, 1}};
  expect_equals_reference(bench, c);
}

TEST_P(AttentionTest, DocumentsStartAnywhere) {
  AttentionCase c = one_piece({2, 1, 40}, 300);
  c.first_visible = [](int64_t position) {
    const std::vector<int64_t> starts = {0, 1, 17, 63, 64, 128, 129, 257, 299};
    return *std::prev(std::ranges::upper_bound(starts, position));
  };
  expect_equals_reference(bench, c);
}

TEST_P(AttentionTest, SlidingWindows) {
  for (const int64_t window : {1, 2, 63, 64, 65, 100}) {
    SCOPED_TRACE(window);
    AttentionCase c = one_piece({2, 2, 16}, 330);
    c.first_visible = [=](int64_t position) { return std::max<int64_t>(position - window + 1, 0); };
    expect_equals_reference(bench, c);
  }
}

/// Rank by rank, with the pieces of all ranks as keys, visited in two orders.
void expect_ranks_equal_reference(Bench& bench, const std::vector<std::vector<Piece>>& ranks) {
  AttentionCase c{{4, 2, 24}, {}, {}};
  c.first_visible = [](int64_t p) { return p < 70 ? 0 : std::max<int64_t>(70, p - 60); };
  for (const std::vector<Piece>& rank : ranks)
    c.keys.insert(c.keys.end(), rank.begin(), rank.end());
  for (const std::vector<Piece>& rank : ranks) {
    c.queries = rank;
    const ReferenceResult expected = attention_reference(c.reference_input());
    std::vector<size_t> order = downwards(c);
    expect_close(run(bench, c, order), expected);
    std::ranges::reverse(order);
    expect_close(run(bench, c, order), expected);
  }
}

TEST_P(AttentionTest, StripedPieces) {
  for (const int64_t ring : {2, 3, 5}) {
    SCOPED_TRACE(ring);
    std::vector<std::vector<Piece>> ranks;
    for (int64_t rank = 0; rank < ring; ++rank) {
      ranks.push_back({{rank, ring, 0, (257 - rank + ring - 1) / ring}});
    }
    expect_ranks_equal_reference(bench, ranks);
  }
}

TEST_P(AttentionTest, ZigzagPieces) {
  const std::vector<Piece> chunks = pieces_of({43, 43, 64, 42, 41, 30});
  std::vector<std::vector<Piece>> ranks;
  for (size_t rank = 0; rank < 3; ++rank) {
    ranks.push_back({chunks[rank], chunks[5 - rank]});
    ranks.back()[0].first_row = 0;
    ranks.back()[1].first_row = chunks[rank].row_count;
  }
  expect_ranks_equal_reference(bench, ranks);
}

TEST_P(AttentionTest, BitsDoNotDependOnTheCut) {
  for (const int64_t head_dim : {32, 40, 128}) {  // the last in several groups of query tiles
    AttentionCase whole = one_piece({4, 2, head_dim}, 300);
    for (const bool documents : {false, true}) {
      if (documents)
        whole.first_visible = [](int64_t p) { return p < 90 ? 0 : p < 210 ? 90 : p - 110; };
      const Result expected = run(bench, whole, {0});
      for (const auto& lengths :
           {std::vector<int64_t>{128, 172}, {64, 192, 44}, {64, 64, 64, 64, 44}}) {
        SCOPED_TRACE(testing::Message() << head_dim << ' ' << documents << ' ' << lengths.size());
        AttentionCase cut = whole;
        cut.keys = pieces_of(lengths);
        expect_same_bits(run(bench, cut, downwards(cut)), expected);
        cut.queries = cut.keys;
        expect_same_bits(run(bench, cut, downwards(cut)), expected);
      }
    }
  }
}

/// The last `count` values of each of `blocks` equal blocks.
std::vector<float> ends_of(const std::vector<float>& values, int64_t blocks, int64_t count) {
  std::vector<float> ends;
  for (int64_t block = 1; block <= blocks; ++block) {
    const auto end = values.begin() + block * int64_t(values.size()) / blocks;
    ends.insert(ends.end(), end - count, end);
  }
  return ends;
}

// The second document begins inside a tile, at a multiple of four. With the first document in the
// same tile or without it: tiles are the same, and what a row does not see leaves its bits alone.
TEST_P(AttentionTest, BitsDoNotDependOnTheDocumentBefore) {
  AttentionCase whole = one_piece({4, 2, 32}, 300);
  whole.first_visible = [](int64_t position) { return position < 116 ? 0 : 116; };
  const Result both = run(bench, whole, {0});
  AttentionCase second = whole;
  second.queries = second.keys = {{116, 1, 0, 184}};
  const Result alone = run(bench, second, {0});
  EXPECT_TRUE(alone.output == ends_of(both.output, 1, 184 * 4 * 32));
  EXPECT_TRUE(alone.sum == ends_of(both.sum, 4, 184));
  EXPECT_TRUE(alone.maximum == ends_of(both.maximum, 4, 184));
  EXPECT_TRUE(alone.dq == ends_of(both.dq, 4, 184 * 32));
  EXPECT_TRUE(alone.dk == ends_of(both.dk, 2, 184 * 32));
  EXPECT_TRUE(alone.dv == ends_of(both.dv, 2, 184 * 32));
}

TEST_P(AttentionTest, RowsWithoutLseAddNothing) {
  AttentionRun run(bench, one_piece({1, 1, 32}, 130));
  run.forward({0});
  bench.device->fill(-kInfinity, run.lse);
  run.backward({0});
  const Result r = run.result();
  for (const auto& values : {r.dq, r.dk, r.dv}) {
    EXPECT_TRUE(std::ranges::all_of(values, [](float x) { return x == 0; }));
  }
}

TEST_P(AttentionTest, RowsThatSeeNothing) {
  AttentionCase c{{2, 1, 32}, pieces_of({150}), {{70, 1, 0, 50}}};
  c.first_visible = [](int64_t position) { return position < 140 ? 0 : 130; };
  expect_equals_reference(bench, c);
  const Result r = run(bench, c, {0});
  for (int64_t head = 0; head < 2; ++head) {
    for (int64_t row = 0; row < 150; ++row) {
      if (row >= 70 && row < 140) continue;
      EXPECT_EQ(r.maximum[head * 150 + row], -kInfinity);
      EXPECT_EQ(r.sum[head * 150 + row], 0);
      EXPECT_EQ(r.lse[head * 150 + row], -kInfinity);
      for (int64_t i = 0; i < 32; ++i) {
        EXPECT_EQ(r.state_output[(head * 150 + row) * 32 + i], 0);
        EXPECT_EQ(r.output[(row * 2 + head) * 32 + i], 0);
        EXPECT_EQ(r.dq[(head * 150 + row) * 32 + i], 0);
      }
    }
  }
}

TEST_P(AttentionTest, KeysThatNobodySeesGetNothing) {
  AttentionCase c{{2, 1, 16}, pieces_of({64}), {{64, 1, 0, 64}}};
  const Result r = run(bench, c, {0});
  EXPECT_EQ(std::ranges::count(r.dk, 0.0f), 64 * 16);
  EXPECT_EQ(std::ranges::count(r.dv, 0.0f), 64 * 16);
}

TEST_P(AttentionTest, LargeScores) {
  AttentionCase c = one_piece({2, 2, 32}, 200);
  c.scale = std::sqrt(30.0);  // of q and k each
  expect_equals_reference(bench, c);
  c.scale = 1e4;  // scores of 1e8: one key takes all, nothing overflows
  const Result r = run(bench, c, {0});
  for (const auto& values : {r.output, r.lse, r.dq, r.dk, r.dv}) {
    EXPECT_TRUE(std::ranges::all_of(values, [](float x) { return std::isfinite(x); }));
  }
}

TEST_P(AttentionTest, GradientsAreAdded) {
  const AttentionCase c = one_piece({4, 2, 32}, 100);
  AttentionRun layer(bench, c);
  layer.forward({0});
  layer.backward({0});
  layer.backward({0});
  ReferenceResult expected = attention_reference(c.reference_input());
  for (auto* values : {&expected.dq, &expected.dk, &expected.dv}) {
    for (double& value : *values) value *= 2;
  }
  expect_close(layer.result(), expected);
}

TEST_P(AttentionTest, NanReachesThoseWhoSeeItOnly) {
  const AttentionCase c = one_piece({1, 1, 16}, 150);
  for (const bool in_query : {true, false}) {
    SCOPED_TRACE(in_query);
    AttentionRun layer(bench, c);
    const int64_t row = 70;
    const Tensor poisoned = in_query ? layer.q.reshaped({150, 16, 1, 1}).slice(row, 1)
                                     : layer.kv[0].reshaped({300, 16, 1, 1}).slice(row, 1);
    bench.device->fill(std::numeric_limits<float>::quiet_NaN(), poisoned);
    layer.forward({0});
    const Result result = layer.result();
    for (int64_t i = 0; i < 150; ++i) {
      const bool sees = in_query ? i == row : i >= row;
      EXPECT_EQ(std::isnan(result.lse[i]), sees) << i;
      for (int64_t j = 0; j < 16; ++j) EXPECT_EQ(std::isnan(result.output[i * 16 + j]), sees) << i << ' ' << j;
    }
  }
}

TEST_P(AttentionTest, ZeroRowsAreLegal) {
  AttentionCase c = one_piece({2, 1, 8}, 5);
  c.keys = {{0, 1, 0, 0}};
  EXPECT_TRUE(std::ranges::all_of(run(bench, c, {0}).output, [](float x) { return x == 0; }));
  c.queries = {{0, 1, 0, 0}};
  EXPECT_TRUE(run(bench, c, {0}).output.empty());
}

}  // namespace
}  // namespace ringlet::test
