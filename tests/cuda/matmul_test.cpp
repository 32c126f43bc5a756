#include <array>

#include "tests/cuda/device_bench.h"
#include "tests/support/compare.h"
#include "tests/support/op_reference.h"

namespace ringlet::test {
namespace {

using Sizes = std::array<int64_t, 3>;  // m, n, k

constexpr std::array<std::array<Transpose, 2>, 4> kOrders = {{{Transpose::no, Transpose::no},
                                                              {Transpose::no, Transpose::yes},
                                                              {Transpose::yes, Transpose::no},
                                                              {Transpose::yes, Transpose::yes}}};

Shape matrix(int64_t rows, int64_t columns, Transpose transpose) {
  return transpose == Transpose::yes ? Shape{columns, rows, 1, 1} : Shape{rows, columns, 1, 1};
}

class DeviceMatmulTest : public DeviceTest {
 protected:
  /// An output may be of the dtype of the operands or f32.
  std::vector<Dtype> output_dtypes() const {
    return in_bf16() ? std::vector{Dtype::bf16, Dtype::f32} : std::vector{Dtype::f32};
  }
  void expect_product(const Tensor& out, const Doubles& expected, const char* what) {
    expect_product(get(out), out.dtype, expected, out.shape[1], what);
  }
  void expect_product(const Floats& out, Dtype out_dtype, const Doubles& expected, int64_t columns,
                      const char* what) {
    expect_close(out, expected, std::max<int64_t>(columns, 1),
                 out_dtype == Dtype::bf16 ? 4e-3 : kOutputTolerance, what);
  }

  /// The matrix as columns [first, first + width) of a wider one whose other elements are NaN.
  Tensor put_slice(const Floats& values, Shape shape, int64_t first) {
    const Tensor wide = poisoned({shape[0], shape[1] + 2 * first, 1, 1});
    const Tensor slice = wide.columns(first, shape[1]);
    for (int64_t row = 0; row < shape[0]; ++row) {
      const Tensor one = put(Floats(values.begin() + row * shape[1], values.begin() + (row + 1) * shape[1]),
                             {1, shape[1], 1, 1});
      device().copy(one, slice.slice(row, 1));
    }
    return slice;
  }
  Floats get_slice(const Tensor& slice) {
    Floats values;
    for (int64_t row = 0; row < slice.rows(); ++row) {
      const Floats one = get(slice.slice(row, 1));
      values.insert(values.end(), one.begin(), one.end());
    }
    return values;
  }
};
INSTANTIATE_TEST_SUITE_P(Devices, DeviceMatmulTest, testing::ValuesIn(every_device()), setting_name);

TEST_P(DeviceMatmulTest, SetsAndAddsAsTheLoopDoes) {
  for (const auto& [m, n, k] : {Sizes{1, 1, 1},
                                {1, 65, 64},
                                {7, 1, 63},
                                {64, 64, 64},
                                {65, 63, 127},
                                {128, 129, 72},
                                {257, 129, 768},
                                {8, 2100, 64},
                                {130, 257, 31}}) {
    for (const auto& [transpose_a, transpose_b] : kOrders) {
      SCOPED_TRACE(testing::Message() << m << " x " << n << " x " << k << ", transposed " << int(transpose_a)
                                      << int(transpose_b));
      const Floats a = random_activations(m * k), b = random_activations(k * n);
      const Doubles expected = reference::matmul(widened(a), transpose_a, widened(b), transpose_b, m, n, k);
      const Tensor left = put(a, matrix(m, k, transpose_a)), right = put(b, matrix(k, n, transpose_b));
      for (const Dtype out_dtype : output_dtypes()) {
        const Tensor out = poisoned_as(out_dtype, {m, n, 1, 1});
        device().matmul(left, transpose_a, right, transpose_b, Write::set, out);
        expect_product(out, expected, "set");
        Doubles sum = widened(get(out));
        for (size_t i = 0; i < sum.size(); ++i) sum[i] += expected[i];
        device().matmul(left, transpose_a, right, transpose_b, Write::add, out);
        expect_product(out, sum, "added");
      }
      next_case();
    }
  }
}

TEST_P(DeviceMatmulTest, ReadsAndWritesColumnSlicesAndNothingBeside) {
  for (const auto& [m, n, k] : {Sizes{1, 5, 3}, {67, 33, 65}, {64, 128, 64}}) {
    for (const int64_t first : {8, 3}) {  // the second is aligned to one element
      for (const auto& [transpose_a, transpose_b] : kOrders) {
        SCOPED_TRACE(testing::Message() << m << " x " << n << " x " << k << " from column " << first);
        const Floats a = random_activations(m * k), b = random_activations(k * n);
        const Tensor wide = put(random_activations(m * (n + 2 * first)), {m, n + 2 * first, 1, 1});
        const Tensor out = wide.columns(first, n);
        const Floats before = get(wide);
        device().matmul(put_slice(a, matrix(m, k, transpose_a), first), transpose_a,
                        put_slice(b, matrix(k, n, transpose_b), first), transpose_b, Write::set, out);
        const Doubles expected = reference::matmul(widened(a), transpose_a, widened(b), transpose_b, m, n, k);
        expect_product(get_slice(out), dtype(), expected, n, "slice");
        const Floats after = get(wide);
        for (size_t i = 0; i < before.size(); ++i) {
          const int64_t column = int64_t(i) % (n + 2 * first);
          const bool beside = column < first || column >= first + n;
          ASSERT_TRUE(!beside || before[i] == after[i]) << "column " << column;
        }
        next_case();
      }
    }
  }
}

TEST_P(DeviceMatmulTest, AnEmptySumIsZeroWhenSetAndNothingWhenAdded) {
  const Tensor a = put({}, {3, 0, 1, 1}), b = put({}, {0, 5, 1, 1}), out = poisoned({3, 5, 1, 1});
  device().matmul(a, Transpose::no, b, Transpose::no, Write::set, out);
  EXPECT_EQ(get(out), Floats(15, 0.0f));
  const Floats values = random_activations(15);
  const Tensor sum = put(values, {3, 5, 1, 1});
  device().matmul(a, Transpose::no, b, Transpose::no, Write::add, sum);
  EXPECT_EQ(get(sum), values);
}

TEST_P(DeviceMatmulTest, NoRowsOrNoColumnsAreLegal) {
  const Tensor some = put(random_activations(35), {5, 7, 1, 1});
  device().matmul(put({}, {0, 5, 1, 1}), Transpose::no, some, Transpose::no, Write::set,
                  poisoned({0, 7, 1, 1}));
  device().matmul(some, Transpose::no, put({}, {7, 0, 1, 1}), Transpose::no, Write::set,
                  poisoned({5, 0, 1, 1}));
  EXPECT_NO_THROW(device().synchronize());
}

TEST_P(DeviceMatmulTest, WrongShapesThrow) {
  const Tensor a = poisoned({3, 4, 1, 1}), b = poisoned({4, 5, 1, 1}), out = poisoned({3, 5, 1, 1});
  const auto run = [&](const Tensor& left, const Tensor& right, const Tensor& to) {
    device().matmul(left, Transpose::no, right, Transpose::no, Write::set, to);
  };
  EXPECT_NO_THROW(run(a, b, out));
  EXPECT_THROW(run(b, a, out), Error);
  EXPECT_THROW(run(a, b.slice(0, 3), out), Error);
  EXPECT_THROW(run(a, b, Tensor{}), Error);
}

TEST_P(DeviceMatmulTest, EqualCallsGiveEqualBits) {
  for (const auto& [m, n, k] : {Sizes{129, 257, 768}, {768, 512, on_cuda() ? 4096 : 256}}) {
    const Tensor a = put(random_activations(m * k), {k, m, 1, 1}),
                 b = put(random_activations(k * n), {k, n, 1, 1});
    for (const Dtype out_dtype : output_dtypes()) {
      const Tensor out = poisoned_as(out_dtype, {m, n, 1, 1});
      std::vector<std::byte> first;
      for (int i = 0; i < (on_cuda() ? 20 : 2); ++i) {
        device().matmul(a, Transpose::yes, b, Transpose::no, Write::set, out);
        const std::vector<std::byte> now = bits(out);
        if (first.empty()) first = now;
        ASSERT_TRUE(now == first) << "call " << i;
      }
    }
    next_case();
  }
}

// Large enough for a trial of algorithms, which the first call holds: it must not change a bit.
TEST_P(DeviceMatmulTest, ALargeProductHasTheSameBitsWhicheverAlgorithmIsFastest) {
  if (!on_cuda() || !in_bf16()) GTEST_SKIP() << "no trials";
  const int64_t m = 1024, n = 1152, k = 1024;
  const Floats rows = random_activations(m * k), columns = random_activations(n * k),
               start = random_activations(m * n);
  const Doubles expected =
      reference::matmul(widened(rows), Transpose::no, widened(columns), Transpose::yes, m, n, k);
  for (const Dtype out_dtype : output_dtypes()) {
    for (const Write write : {Write::set, Write::add}) {
      const Tensor a = put(rows, {m, k, 1, 1}), b = put(columns, {n, k, 1, 1});
      std::vector<std::byte> first;
      for (int i = 0; i < 6; ++i) {
        const Tensor out = put_as(out_dtype, start, {m, n, 1, 1});
        device().matmul(a, Transpose::no, b, Transpose::yes, write, out);
        const std::vector<std::byte> now = bits(out);
        if (first.empty()) first = now;
        ASSERT_TRUE(now == first) << "call " << i;
        if (write == Write::set && i % 5 == 0) expect_product(out, expected, "large");
      }
      next_case();
    }
  }
}

TEST_P(DeviceMatmulTest, ALargeProductOfZerosDecidesNothingAndIsZero) {
  if (!on_cuda() || !in_bf16()) GTEST_SKIP() << "no trials";
  const int64_t m = 1024, n = 1088, k = 1024;
  const Floats values = random_activations(m * k), start = random_activations(m * n);
  const Tensor a = put(values, {m, k, 1, 1}), zeros = put(Floats(n * k, 0.0f), {n, k, 1, 1});
  const Tensor sum = put_f32(start, {m, n, 1, 1}), product = poisoned({m, n, 1, 1});
  for (int i = 0; i < 3; ++i) {
    device().matmul(a, Transpose::no, zeros, Transpose::yes, Write::add, sum);
    EXPECT_EQ(get(sum), start) << "a trial must not touch what is added to";
    device().matmul(a, Transpose::no, zeros, Transpose::yes, Write::set, product);
    EXPECT_EQ(get(product), Floats(m * n, 0.0f));
  }
}

}  // namespace
}  // namespace ringlet::test
