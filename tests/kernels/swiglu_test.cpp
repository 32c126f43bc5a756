#include <gtest/gtest.h>

#include "tests/support/compare.h"
#include "tests/support/gradient_check.h"
#include "tests/support/host_tensor.h"
#include "tests/support/op_reference.h"
#include "tests/support/simd_targets.h"

namespace ringlet::test {
namespace {

class SwigluTest : public SimdTargetTest {};
INSTANTIATE_TEST_SUITE_P(Simd, SwigluTest, each_simd_target(), simd_target_name);

TEST_P(SwigluTest, ForwardAndBackwardAreTheReferenceAlsoInPlace) {
  Bench bench;
  for (const int64_t rows : {0, 1, 7, 65}) {
    for (const int64_t width : {1, 7, 63, 64, 65, 131}) {
      const auto x = random_values(rows * 2 * width, 1, /*scale=*/3);
      const auto dy = random_values(rows * width, 2);
      const Tensor gate_up = bench.put(x, {rows, 2 * width, 1, 1});
      const Tensor y = bench.poisoned({rows, width, 1, 1});
      bench.device->swiglu_forward(gate_up, y);
      EXPECT_LE(error_of(bench.get(y), reference::swiglu(widen(x), width)), kOutputTolerance);

      const auto expected = reference::swiglu_backward(widen(x), widen(dy), width);
      const Tensor gradient = bench.put(dy, {rows, width, 1, 1});
      for (const Tensor& d_gate_up : {bench.poisoned(gate_up.shape), gate_up}) {
        bench.device->swiglu_backward(gate_up, gradient, d_gate_up);
        EXPECT_LE(error_of(bench.get(d_gate_up), expected), kGradientTolerance)
            << rows << ' ' << width;
      }
    }
  }
}

// Element by element and to a few roundings: a sum over all would hide a wrong lane.
TEST_P(SwigluTest, EveryElementIsRightOverTheWholeRange) {
  Bench bench;
  std::vector<float> x;
  for (int i = -1600; i < 1600; ++i) x.push_back(float(i) / 16);
  const int64_t width = int64_t(x.size());
  x.resize(2 * x.size(), 1.0f);
  const Tensor y = bench.poisoned({1, width, 1, 1});
  bench.device->swiglu_forward(bench.put(x, {1, 2 * width, 1, 1}), y);
  const auto actual = bench.get(y);
  const auto expected = reference::swiglu(widen(x), width);
  for (int64_t i = 0; i < width; ++i) {
    const double allowed = 1e-6 * std::abs(expected[i]) + 1e-35;
    EXPECT_LE(std::abs(double(actual[i]) - expected[i]), allowed) << x[i];
  }
}

TEST_P(SwigluTest, ExtremesSaturateAndNanStays) {
  Bench bench;
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const std::vector<float> x = {-1e4f, -89, 1e4f, nan, 1, 1, 1, 1};
  const Tensor gate_up = bench.put(x, {1, 8, 1, 1});
  const Tensor y = bench.poisoned({1, 4, 1, 1}), d_gate_up = bench.poisoned({1, 8, 1, 1});
  bench.device->swiglu_forward(gate_up, y);
  bench.device->swiglu_backward(gate_up, bench.put<float>({1, 1, 1, 1}, {1, 4, 1, 1}), d_gate_up);
  const auto values = bench.get(y), gradient = bench.get(d_gate_up);
  EXPECT_LE(std::abs(values[0]), 1e-30f);
  EXPECT_LE(std::abs(values[1]), 1e-30f);
  EXPECT_EQ(values[2], 1e4f);
  EXPECT_TRUE(std::isnan(values[3]));
  EXPECT_LE(std::abs(gradient[0]), 1e-30f);
  EXPECT_EQ(gradient[2], 1.0f);
  EXPECT_TRUE(std::isnan(gradient[3]));
}

TEST(SwigluReferenceTest, BackwardIsTheCentralDifferenceOfForward) {
  const auto x = widen(random_values(3 * 10, 3)), dy = widen(random_values(3 * 5, 4));
  const auto expected = central_differences(
      [&](const auto& at) { return dot(reference::swiglu(at, 5), dy); }, x);
  EXPECT_LE(error_of(reference::swiglu_backward(x, dy, 5), expected), kDifferenceTolerance);
}

TEST(SwigluShapeTest, WrongShapesThrow) {
  Bench bench;
  const Tensor gate_up = bench.poisoned({3, 8, 1, 1}), y = bench.poisoned({3, 4, 1, 1});
  EXPECT_THROW(bench.device->swiglu_forward(gate_up, gate_up), Error);
  EXPECT_THROW(bench.device->swiglu_forward(gate_up, y.slice(0, 2)), Error);
  EXPECT_THROW(bench.device->swiglu_backward(gate_up, y, y), Error);
}

}  // namespace
}  // namespace ringlet::test
