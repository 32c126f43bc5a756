
#include <gtest/gtest.h>

#include <cstdlib>
#include <string_view>
#include <tuple>

#include "tests/support/compare.h"
#include "tests/support/host_tensor.h"
#include "tests/support/op_reference.h"
#include "tests/support/simd_targets.h"

namespace ringlet::test {
namespace {

Shape matrix(int64_t rows, int64_t columns, Transpose transpose) {
  return transpose == Transpose::yes ? Shape{columns, rows, 1, 1} : Shape{rows, columns, 1, 1};
}

/// The matrix as columns [3, 3 + width) of a wider one whose other elements are NaN.
Tensor put_slice(Bench& bench, const std::vector<float>& values, Shape shape) {
  const Tensor wide = bench.poisoned({shape[0], shape[1] + 8, 1, 1});
  const Tensor slice = wide.columns(3, shape[1]);
  for (int64_t row = 0; row < shape[0]; ++row) {
    const std::vector<float> one(values.begin() + row * shape[1],
                                 values.begin() + (row + 1) * shape[1]);
    upload<float>(*bench.device, one, slice.slice(row, 1));
  }
  return slice;
}

std::vector<float> get_slice(Bench& bench, const Tensor& slice) {
  std::vector<float> values;
  for (int64_t row = 0; row < slice.rows(); ++row) {
    const std::vector<float> one = bench.get(slice.slice(row, 1));
    values.insert(values.end(), one.begin(), one.end());
  }
  return values;
}

/// Which operands are transposed, on which SIMD target.
class MatmulTest : public testing::TestWithParam<std::tuple<Transpose, Transpose, int64_t>> {
 protected:
  void SetUp() override { hwy::SetSupportedTargetsForTest(std::get<2>(GetParam())); }
  void TearDown() override { hwy::SetSupportedTargetsForTest(0); }
};

TEST_P(MatmulTest, SetsAndAddsAsTheLoopDoes) {
  const auto [transpose_a, transpose_b, target] = GetParam();
  Bench bench(int64_t{1} << 28, 3);
  // The last has sums of several blocks, or more columns than are packed at a time.
  for (const auto& [m, n, k] : {std::array<int64_t, 3>{1, 1, 1},
                                {1, 65, 64},
                                {7, 1, 63},
                                {9, 32, 40},
                                {70, 96, 33},
                                {64, 64, 64},
                                {65, 63, 127},
                                {130, 257, 31},
                                {300, 200, 100},
                                {13, 2100, 600},
                                {1, 66000, 3},
                                {101, 300, 2100}}) {
    const auto a = random_values(m * k, 1), b = random_values(k * n, 2);
    const auto expected = reference::matmul(widen(a), transpose_a, widen(b), transpose_b, m, n, k);
    const Tensor left = bench.put(a, matrix(m, k, transpose_a));
    const Tensor right = bench.put(b, matrix(k, n, transpose_b));
    const Tensor out = bench.poisoned({m, n, 1, 1});
    bench.device->matmul(left, transpose_a, right, transpose_b, Write::set, out);
    EXPECT_LE(error_of(bench.get(out), expected), kOutputTolerance) << m << ' ' << n << ' ' << k;
    bench.device->matmul(left, transpose_a, right, transpose_b, Write::add, out);
    auto twice = expected;
    for (double& value : twice) value *= 2;
    EXPECT_LE(error_of(bench.get(out), twice), kOutputTolerance) << m << ' ' << n << ' ' << k;
  }
}

TEST_P(MatmulTest, ReadsAndWritesColumnSlices) {
  const auto [transpose_a, transpose_b, target] = GetParam();
  Bench bench;
  for (const auto& [m, n, k] : {std::array<int64_t, 3>{1, 5, 3}, {67, 33, 65}}) {
    const auto a = random_values(m * k, 3), b = random_values(k * n, 4);
    const Tensor out = put_slice(bench, random_values(m * n, 5), {m, n, 1, 1});
    bench.device->matmul(put_slice(bench, a, matrix(m, k, transpose_a)), transpose_a,
                         put_slice(bench, b, matrix(k, n, transpose_b)), transpose_b, Write::set,
                         out);
    const auto expected = reference::matmul(widen(a), transpose_a, widen(b), transpose_b, m, n, k);
    EXPECT_LE(error_of(get_slice(bench, out), expected), kOutputTolerance);
  }
}

TEST_P(MatmulTest, LeavesTheColumnsBesideASliceAlone) {
  const auto [transpose_a, transpose_b, target] = GetParam();
  Bench bench;
  for (const int64_t width : {11, 16, 32}) {  // the last two are half a block somewhere
    const int64_t all = width + 19;
    const Tensor wide = bench.put(random_values(20 * all, 6), {20, all, 1, 1});
    const auto before = bench.get(wide);
    const Tensor a = bench.put(random_values(20 * 9, 7), matrix(20, 9, transpose_a));
    const Tensor b = bench.put(random_values(9 * width, 8), matrix(9, width, transpose_b));
    bench.device->matmul(a, transpose_a, b, transpose_b, Write::add, wide.columns(4, width));
    const auto after = bench.get(wide);
    for (int64_t i = 0; i < std::ssize(before); ++i) {
      const bool inside = i % all >= 4 && i % all < 4 + width;
      EXPECT_EQ(before[size_t(i)] != after[size_t(i)], inside) << width << ' ' << i;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Orders, MatmulTest,
                         testing::Combine(testing::Values(Transpose::no, Transpose::yes),
                                          testing::Values(Transpose::no, Transpose::yes), each_simd_target()));

TEST(MatmulEdgeTest, AnEmptySumIsZeroWhenSetAndNothingWhenAdded) {
  Bench bench;
  const Tensor a = bench.put<float>({}, {3, 0, 1, 1}), b = bench.put<float>({}, {0, 5, 1, 1});
  const Tensor out = bench.poisoned({3, 5, 1, 1});
  bench.device->matmul(a, Transpose::no, b, Transpose::no, Write::set, out);
  EXPECT_EQ(bench.get(out), std::vector<float>(15, 0.0f));
  const auto values = random_values(15, 9);
  upload<float>(*bench.device, values, out);
  bench.device->matmul(a, Transpose::no, b, Transpose::no, Write::add, out);
  EXPECT_EQ(bench.get(out), values);
}

TEST(MatmulEdgeTest, NoRowsOrNoColumnsAreLegal) {
  Bench bench;
  const Tensor some = bench.put(random_values(35, 10), {5, 7, 1, 1});
  const Tensor no_rows = bench.put<float>({}, {0, 5, 1, 1}), none = bench.poisoned({0, 7, 1, 1});
  EXPECT_NO_THROW(
      bench.device->matmul(no_rows, Transpose::no, some, Transpose::no, Write::set, none));
  const Tensor no_columns = bench.put<float>({}, {7, 0, 1, 1}), out = bench.poisoned({5, 0, 1, 1});
  EXPECT_NO_THROW(
      bench.device->matmul(some, Transpose::no, no_columns, Transpose::no, Write::set, out));
}

TEST(MatmulEdgeTest, WrongShapesThrow) {
  Bench bench;
  const Tensor a = bench.poisoned({3, 4, 1, 1}), b = bench.poisoned({4, 5, 1, 1});
  const Tensor out = bench.poisoned({3, 5, 1, 1}), tokens = bench.put<int32_t>({1}, {1, 1, 1, 1});
  const auto run = [&](const Tensor& left, const Tensor& right, const Tensor& to) {
    bench.device->matmul(left, Transpose::no, right, Transpose::no, Write::set, to);
  };
  EXPECT_NO_THROW(run(a, b, out));
  EXPECT_THROW(run(b, a, out), Error);
  EXPECT_THROW(run(a, b, bench.poisoned({5, 3, 1, 1})), Error);
  EXPECT_THROW(run(a, b.slice(0, 3), out), Error);
  EXPECT_THROW(run(a, b, Tensor{}), Error);
  EXPECT_THROW(run(tokens, tokens, tokens), Error);
}

/// Calls body(first, count) for stretches of 1, 2, 3, ... of `size`.
template <class Body>
void each_stretch(int64_t size, const Body& body) {
  for (int64_t first = 0, count = 1; first < size; first += count, ++count) {
    body(first, std::min(count, size - first));
  }
}

// What reproducible layouts and any number of threads rest on: an element's bits are those of its
// row and column.
TEST_P(MatmulTest, CuttingByRowsOrColumnsDoesNotChangeABit) {
  constexpr int64_t kRows = 401, kColumns = 75, kDepth = 300;  // more rows than depth, and fewer
  const auto [transpose_a, transpose_b, target] = GetParam();
  Bench bench;
  const Tensor a = bench.put(random_values(kRows * kDepth, 11), matrix(kRows, kDepth, transpose_a));
  const Tensor b =
      bench.put(random_values(kDepth * kColumns, 12), matrix(kDepth, kColumns, transpose_b));
  const Tensor whole = bench.poisoned({kRows, kColumns, 1, 1}), parts = bench.poisoned(whole.shape);
  bench.device->matmul(a, transpose_a, b, transpose_b, Write::set, whole);
  const auto expected = bench.get(whole);
  each_stretch(kRows, [&, turned = transpose_a, other = transpose_b](int64_t first, int64_t count) {
    const Tensor rows = turned == Transpose::yes ? a.columns(first, count) : a.slice(first, count);
    bench.device->matmul(rows, turned, b, other, Write::set, parts.slice(first, count));
  });
  EXPECT_EQ(bench.get(parts), expected);
  bench.device->fill(0, parts);
  each_stretch(
      kColumns, [&, other = transpose_a, turned = transpose_b](int64_t first, int64_t count) {
        const Tensor columns =
            turned == Transpose::yes ? b.slice(first, count) : b.columns(first, count);
        bench.device->matmul(a, other, columns, turned, Write::set, parts.columns(first, count));
      });
  EXPECT_EQ(bench.get(parts), expected);
}

// Threads share the rows, the columns in groups, or both: whole sums at a time or a part of them, in several rounds of
// columns.
TEST_P(MatmulTest, AnyNumberOfThreadsComputesTheSameBits) {
  const auto [transpose_a, transpose_b, target] = GetParam();
  for (const auto& [m, n, k] : {std::array<int64_t, 3>{500, 70, 40},
                                {40, 900, 40},
                                {130, 4200, 20},
                                {70, 60, 2100},
                                {60, 700, 700},
                                {2100, 1100, 257},
                                {1, 66000, 3}}) {
    const auto left = random_values(m * k, 13), right = random_values(k * n, 14), before = random_values(m * n, 15);
    const auto product = [&, turned_a = transpose_a, turned_b = transpose_b](int threads) {
      Bench bench(int64_t{1} << 26, threads);
      const Tensor a = bench.put(left, matrix(m, k, turned_a)), b = bench.put(right, matrix(k, n, turned_b)),
                   out = bench.put(before, {m, n, 1, 1});
      bench.device->matmul(a, turned_a, b, turned_b, Write::add, out);
      return bench.get(out);
    };
    const auto expected = product(1);
    for (const int threads : {2, 3, 4, 12}) EXPECT_EQ(product(threads), expected) << m << ' ' << n << ' ' << k << ' ' << threads;
  }
}

}  // namespace
}  // namespace ringlet::test
