#include <gtest/gtest.h>

#include "tests/support/compare.h"
#include "tests/support/gradient_check.h"
#include "tests/support/host_tensor.h"
#include "tests/support/op_reference.h"
#include "tests/support/simd_targets.h"

namespace ringlet::test {
namespace {

constexpr float kEpsilon = 1e-2f;  // large enough to be seen

class NormTest : public SimdTargetTest {};
INSTANTIATE_TEST_SUITE_P(Simd, NormTest, each_simd_target(), simd_target_name);

TEST_P(NormTest, ForwardAndBackwardAreTheReference) {
  Bench bench;
  for (const int64_t rows : {0, 1, 7, 65}) {
    for (const int64_t width : {1, 7, 8, 63, 64, 65, 257}) {
      const auto x = random_values(rows * width, 1), weight = random_values(width, 2);
      const auto dy = random_values(rows * width, 3), start = random_values(rows * width, 4);
      const auto d_weight_start = random_values(width, 5);
      const Tensor y = bench.poisoned({rows, width, 1, 1}),
                   dx = bench.poisoned({rows, width, 1, 1});
      const Tensor dx_sum = bench.put(start, {rows, width, 1, 1});
      const Tensor d_weight = bench.put(d_weight_start, {width, 1, 1, 1});
      const Tensor input = bench.put(x, {rows, width, 1, 1}),
                   w = bench.put(weight, {width, 1, 1, 1});
      const Tensor gradient = bench.put(dy, {rows, width, 1, 1});

      bench.device->rms_norm_forward(input, w, kEpsilon, y);
      EXPECT_LE(error_of(bench.get(y), reference::rms_norm(widen(x), widen(weight), kEpsilon)),
                kOutputTolerance);

      auto expected = reference::rms_norm_backward(widen(x), widen(weight), kEpsilon, widen(dy));
      bench.device->rms_norm_backward(input, w, kEpsilon, gradient, Write::set, dx, d_weight);
      EXPECT_LE(error_of(bench.get(dx), expected.dx), kGradientTolerance) << rows << ' ' << width;
      for (int64_t i = 0; i < width; ++i) expected.d_weight[i] += double(d_weight_start[i]);
      EXPECT_LE(error_of(bench.get(d_weight), expected.d_weight), kGradientTolerance);

      bench.device->rms_norm_backward(input, w, kEpsilon, gradient, Write::add, dx_sum, d_weight);
      for (size_t i = 0; i < start.size(); ++i) expected.dx[i] += double(start[i]);
      EXPECT_LE(error_of(bench.get(dx_sum), expected.dx), kGradientTolerance);
    }
  }
}

// Chunks of rows must give the bits of one call: the MLP and the head run in chunks.
TEST_P(NormTest, ChunksOfRowsGiveEqualBits) {
  Bench bench;
  const int64_t rows = 33, width = 48;
  const Tensor x = bench.put(random_values(rows * width, 1), {rows, width, 1, 1});
  const Tensor weight = bench.put(random_values(width, 2), {width, 1, 1, 1});
  const Tensor dy = bench.put(random_values(rows * width, 3), {rows, width, 1, 1});
  const auto run = [&](int64_t chunk) {
    const Tensor dx = bench.poisoned({rows, width, 1, 1});
    const Tensor d_weight = bench.put(random_values(width, 4), {width, 1, 1, 1});
    for (int64_t first = 0; first < rows; first += chunk) {
      const int64_t count = std::min(chunk, rows - first);
      bench.device->rms_norm_backward(x.slice(first, count), weight, kEpsilon,
                                      dy.slice(first, count), Write::set, dx.slice(first, count),
                                      d_weight);
    }
    auto values = bench.get(dx);
    const auto more = bench.get(d_weight);
    values.insert(values.end(), more.begin(), more.end());
    return values;
  };
  EXPECT_EQ(run(rows), run(1));
  EXPECT_EQ(run(rows), run(10));
}

// More rows than there is room to keep something of each, on any number of threads.
TEST(NormBackwardTest, AsManyRowsAsThereAreGiveTheSameBitsOnEveryTeam) {
  const int64_t rows = (int64_t{1} << 19) + 3, width = 2;
  const auto x = random_values(rows * width, 1), dy = random_values(rows * width, 2), weight = random_values(width, 3);
  std::vector<float> first;
  for (const int threads : {1, 3}) {
    Bench bench(int64_t{1} << 28, threads);
    const Tensor dx = bench.poisoned({rows, width, 1, 1}), d_weight = bench.put(weight, {width, 1, 1, 1});
    bench.device->rms_norm_backward(bench.put(x, dx.shape), bench.put(weight, {width, 1, 1, 1}), kEpsilon,
                                    bench.put(dy, dx.shape), Write::set, dx, d_weight);
    auto values = bench.get(dx);
    const auto more = bench.get(d_weight);
    values.insert(values.end(), more.begin(), more.end());
    if (first.empty()) {
      first = values;
      auto expected = reference::rms_norm_backward(widen(x), widen(weight), kEpsilon, widen(dy));
      for (int64_t i = 0; i < width; ++i) expected.d_weight[size_t(i)] += double(weight[size_t(i)]);
      EXPECT_LE(error_of(bench.get(dx), expected.dx), kGradientTolerance);
      EXPECT_LE(error_of(more, expected.d_weight), kGradientTolerance);
    }
    EXPECT_EQ(values, first) << threads << " threads";
  }
}

TEST(NormReferenceTest, BackwardIsTheCentralDifferenceOfForward) {
  const auto x = widen(random_values(3 * 5, 6)), weight = widen(random_values(5, 7));
  const auto dy = widen(random_values(3 * 5, 8));
  const auto gradient = reference::rms_norm_backward(x, weight, kEpsilon, dy);
  const auto dx = central_differences(
      [&](const auto& at) { return dot(reference::rms_norm(at, weight, kEpsilon), dy); }, x);
  const auto d_weight = central_differences(
      [&](const auto& at) { return dot(reference::rms_norm(x, at, kEpsilon), dy); }, weight);
  EXPECT_LE(error_of(gradient.dx, dx), kDifferenceTolerance);
  EXPECT_LE(error_of(gradient.d_weight, d_weight), kDifferenceTolerance);
}

TEST(NormShapeTest, WrongShapesThrow) {
  Bench bench;
  const Tensor x = bench.poisoned({3, 4, 1, 1}), weight = bench.poisoned({4, 1, 1, 1});
  const Tensor longer = bench.poisoned({5, 1, 1, 1}), taller = bench.poisoned({4, 4, 1, 1});
  EXPECT_THROW(bench.device->rms_norm_forward(x, longer, 0, x), Error);
  EXPECT_THROW(bench.device->rms_norm_forward(x, weight, 0, taller), Error);
  EXPECT_THROW(bench.device->rms_norm_forward(taller.columns(0, 3), weight.slice(0, 3), 0,
                                              bench.poisoned({4, 3, 1, 1})),
               Error)
      << "rows that are apart";
  EXPECT_THROW(bench.device->rms_norm_backward(x, weight, 0, x, Write::set, x, longer), Error);
  EXPECT_THROW(bench.device->rms_norm_backward(x, weight, 0, taller, Write::set, x, weight), Error);
}

}  // namespace
}  // namespace ringlet::test
