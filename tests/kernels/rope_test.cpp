#include <gtest/gtest.h>

#include "tests/support/compare.h"
#include "tests/support/gradient_check.h"
#include "tests/support/host_tensor.h"
#include "tests/support/op_reference.h"
#include "tests/support/simd_targets.h"

namespace ringlet::test {
namespace {

using reference::Doubles;
using reference::Split;
using reference::SplitInput;

enum class QkNorm { no, yes };

/// Zigzag, striped, and one whole piece; the last has a row of its own.
const std::vector<std::vector<Piece>> kPieces = {
    {},
    {{0, 1, 0, 1}},
    {{4, 1, 0, 5}, {40, 1, 5, 7}},
    {{3, 4, 0, 13}, {1'000'000, 1, 13, 1}},
};

int64_t rows_of(const std::vector<Piece>& pieces) {
  return pieces.empty() ? 0 : pieces.back().first_row + pieces.back().row_count;
}

SplitInput make_input(const HeadShape& shape, const std::vector<Piece>& pieces, QkNorm norm) {
  SplitInput input{shape, pieces, reference::rotary_table(pieces, 10'000, shape.head_dim),
                   {},    {},     1e-2};
  if (norm == QkNorm::yes) {
    input.q_norm = widen(random_values(shape.head_dim, 1));
    input.k_norm = widen(random_values(shape.head_dim, 2));
  }
  return input;
}

Tensor put_doubles(Bench& bench, const Doubles& values, Shape shape) {
  return bench.put(std::vector<float>(values.begin(), values.end()), shape);
}

QkvSplit put_split(Bench& bench, const SplitInput& input) {
  const int64_t head_dim = input.shape.head_dim, rows = rows_of(input.pieces);
  QkvSplit split{
      input.shape, input.pieces, put_doubles(bench, input.rotary, {rows, head_dim, 1, 1}),
      {},          {},           float(input.epsilon)};
  if (input.q_norm.empty()) return split;
  split.q_norm = put_doubles(bench, input.q_norm, {head_dim, 1, 1, 1});
  split.k_norm = put_doubles(bench, input.k_norm, {head_dim, 1, 1, 1});
  return split;
}

class QkvSplitTest : public SimdTargetTest {
 protected:
  /// Calls body(input) for heads, pieces and norms of all kinds.
  template <class Body>
  void for_each_input(const Body& body) {
    for (const HeadShape& shape : {HeadShape{1, 1, 8}, {4, 2, 24}, {6, 1, 64}, {2, 2, 72}}) {
      for (const auto& pieces : kPieces) {
        for (const QkNorm norm : {QkNorm::no, QkNorm::yes}) body(make_input(shape, pieces, norm));
      }
    }
  }
};
INSTANTIATE_TEST_SUITE_P(Simd, QkvSplitTest, each_simd_target(), simd_target_name);

TEST_P(QkvSplitTest, ForwardIsTheReference) {
  for_each_input([](const SplitInput& input) {
    Bench bench(1 << 24);
    const HeadShape& shape = input.shape;
    const int64_t rows = rows_of(input.pieces);
    const auto values = random_values(rows * shape.qkv_width(), 3);
    const Tensor q = bench.poisoned({shape.heads, rows, shape.head_dim, 1});
    const Tensor kv = bench.poisoned({2 * shape.kv_heads * rows * shape.head_dim, 1, 1, 1});
    bench.device->qkv_split_forward(put_split(bench, input),
                                    bench.put(values, {rows, shape.qkv_width(), 1, 1}), q, kv);
    const Split expected = reference::qkv_split(input, widen(values));
    EXPECT_LE(error_of(bench.get(q), expected.q), kOutputTolerance);
    EXPECT_LE(error_of(bench.get(kv), expected.kv), kOutputTolerance);
  });
}

TEST_P(QkvSplitTest, BackwardIsTheReferenceAlsoInPlace) {
  for_each_input([](const SplitInput& input) {
    Bench bench(1 << 24);
    const HeadShape& shape = input.shape;
    const int64_t rows = rows_of(input.pieces), head_dim = shape.head_dim;
    const bool normed = !input.q_norm.empty();
    const auto values = random_values(rows * shape.qkv_width(), 3);
    const auto dq = random_values(rows * shape.q_width(), 4);
    const auto dkv = random_values(2 * rows * shape.kv_heads * head_dim, 5);
    const auto start = random_values(head_dim, 6);
    auto expected = reference::qkv_split_backward(input, widen(values), {widen(dq), widen(dkv)});
    for (size_t i = 0; i < expected.d_q_norm.size(); ++i) {
      expected.d_q_norm[i] += double(start[i]);
      expected.d_k_norm[i] += double(start[i]);
    }
    const QkvSplit split = put_split(bench, input);
    const Tensor dq_in = bench.put(dq, {shape.heads, rows, head_dim, 1});
    const Tensor dkv_in = bench.put(dkv, {int64_t(dkv.size()), 1, 1, 1});
    const Tensor qkv = bench.put(values, {rows, shape.qkv_width(), 1, 1});
    for (const Tensor& d_qkv : {bench.poisoned(qkv.shape), qkv}) {
      const Tensor d_q_norm = normed ? bench.put(start, {head_dim, 1, 1, 1}) : Tensor{};
      const Tensor d_k_norm = normed ? bench.put(start, {head_dim, 1, 1, 1}) : Tensor{};
      bench.device->qkv_split_backward(split, normed ? qkv : Tensor{}, dq_in, dkv_in, d_qkv,
                                       d_q_norm, d_k_norm);
      EXPECT_LE(error_of(bench.get(d_qkv), expected.d_qkv), kGradientTolerance);
      if (!normed) continue;
      EXPECT_LE(error_of(bench.get(d_q_norm), expected.d_q_norm), kGradientTolerance);
      EXPECT_LE(error_of(bench.get(d_k_norm), expected.d_k_norm), kGradientTolerance);
    }
  });
}

TEST(QkvSplitReferenceTest, BackwardIsTheCentralDifferenceOfForward) {
  SplitInput input = make_input({2, 1, 8}, kPieces[2], QkNorm::yes);
  const auto qkv = widen(random_values(12 * input.shape.qkv_width(), 7));
  const Split upstream{widen(random_values(12 * 16, 8)), widen(random_values(2 * 12 * 8, 9))};
  const auto objective = [&](const SplitInput& at_input, const Doubles& at) {
    const Split split = reference::qkv_split(at_input, at);
    return dot(split.q, upstream.q) + dot(split.kv, upstream.kv);
  };
  const auto gradient = reference::qkv_split_backward(input, qkv, upstream);
  const auto d_qkv =
      central_differences([&](const Doubles& at) { return objective(input, at); }, qkv);
  EXPECT_LE(error_of(gradient.d_qkv, d_qkv), kDifferenceTolerance);
  const auto with_k_norm = [&](const Doubles& at) {
    SplitInput other = input;
    other.k_norm = at;
    return objective(other, qkv);
  };
  EXPECT_LE(error_of(gradient.d_k_norm, central_differences(with_k_norm, input.k_norm)),
            kDifferenceTolerance);
}

// A float angle is off by hundredths of a radian out there; each value must be right to a float's
// rounding.
TEST(RotaryTableTest, IsRightAtPositionOneMillionAndBeyond) {
  Bench bench;
  const std::vector<Piece> pieces = {{1'000'000, 1, 0, 3}, {999'999'937, 7, 3, 2}, {0, 1, 5, 1}};
  for (const double base : {10'000.0, 5e6}) {
    const Tensor table = bench.poisoned({6, 64, 1, 1});
    bench.device->rotary_table(pieces, base, table);
    const auto actual = bench.get(table);
    const Doubles expected = reference::rotary_table(pieces, base, 64);
    ASSERT_EQ(actual.size(), expected.size());
    for (size_t i = 0; i < actual.size(); ++i) {
      EXPECT_LE(std::abs(double(actual[i]) - expected[i]), 1.5e-7) << i;
    }
  }
}

TEST(QkvSplitShapeTest, WrongShapesThrow) {
  Bench bench(1 << 24);
  const SplitInput input = make_input({4, 2, 8}, kPieces[2], QkNorm::yes);
  const QkvSplit good = put_split(bench, input);
  const Tensor qkv = bench.poisoned({12, 64, 1, 1}), q = bench.poisoned({4, 12, 8, 1});
  const Tensor kv = bench.poisoned({2 * 2 * 12 * 8, 1, 1, 1});
  const auto run = [&](const QkvSplit& split, const Tensor& from) {
    bench.device->qkv_split_forward(split, from, q, kv);
  };
  EXPECT_NO_THROW(run(good, qkv));
  EXPECT_THROW(run(good, bench.poisoned({12, 72, 1, 1})), Error);
  EXPECT_THROW(run(good, qkv.slice(0, 11)), Error) << "fewer rows than the pieces have";
  QkvSplit bad = good;
  bad.k_norm = {};
  EXPECT_THROW(run(bad, qkv), Error) << "one norm alone";
  bad = good;
  bad.shape.kv_heads = 3;
  EXPECT_THROW(run(bad, qkv), Error);
  bad = good;
  const std::vector<Piece> gap = {{0, 1, 0, 5}, {40, 1, 6, 6}};
  bad.pieces = gap;
  EXPECT_THROW(run(bad, qkv), Error);
  EXPECT_THROW(
      bench.device->qkv_split_backward(good, Tensor{}, q, kv, qkv, good.q_norm, good.k_norm), Error)
      << "QK-norm without its input";
  EXPECT_THROW(bench.device->rotary_table(kPieces[2], 1e4, bench.poisoned({11, 8, 1, 1})), Error);
}

}  // namespace
}  // namespace ringlet::test
