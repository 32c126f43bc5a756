#include <gtest/gtest.h>

#include "tests/support/compare.h"
#include "tests/support/host_tensor.h"
#include "tests/support/op_reference.h"
#include "tests/support/simd_targets.h"

namespace ringlet::test {
namespace {

constexpr AdamW kSettings{.learning_rate = 1e-2f,
                          .beta1 = 0.9f,
                          .beta2 = 0.95f,
                          .epsilon = 1e-8f,
                          .weight_decay = 0.1f,
                          .gradient_scale = 0.5f,
                          .step = 1};

class AdamWTest : public SimdTargetTest {};
INSTANTIATE_TEST_SUITE_P(Simd, AdamWTest, each_simd_target(), simd_target_name);

TEST_P(AdamWTest, SeveralStepsAreTheReference) {
  Bench bench;
  for (const int64_t size : {0, 1, 7, 63, 64, 65, 1009}) {
    const auto start = random_values(size, 1);
    const Tensor weights = bench.put(start, {size, 1, 1, 1});
    const Tensor first = bench.put(std::vector<float>(size), {size, 1, 1, 1});
    const Tensor second = bench.put(std::vector<float>(size), {size, 1, 1, 1});
    reference::AdamWState expected{widen(start), std::vector<double>(size),
                                   std::vector<double>(size)};
    AdamW settings = kSettings;
    for (settings.step = 1; settings.step <= 5; ++settings.step) {
      const auto gradient = random_values(size, 10 + settings.step);
      bench.device->adamw(settings, bench.put(gradient, {size, 1, 1, 1}), weights, first, second, {});
      expected = reference::adamw(settings, widen(gradient), expected);
    }
    EXPECT_LE(error_of(bench.get(weights), expected.weights), kOutputTolerance) << size;
    EXPECT_LE(error_of(bench.get(first), expected.first_moment), kOutputTolerance) << size;
    EXPECT_LE(error_of(bench.get(second), expected.second_moment), kOutputTolerance) << size;
  }
}

// Decoupled: with no gradient, decay alone shrinks the weights, by the learning rate times the
// decay.
TEST_P(AdamWTest, DecayDoesNotPassThroughTheMoments) {
  Bench bench;
  const auto start = random_values(65, 2);
  const Tensor weights = bench.put(start, {65, 1, 1, 1});
  const Tensor zeros = bench.put(std::vector<float>(65), {65, 1, 1, 1});
  const Tensor first = bench.put(std::vector<float>(65), {65, 1, 1, 1});
  const Tensor second = bench.put(std::vector<float>(65), {65, 1, 1, 1});
  bench.device->adamw(kSettings, zeros, weights, first, second, {});
  auto expected = widen(start);
  for (double& value : expected) value *= 1 - 1e-2 * 0.1;
  EXPECT_LE(error_of(bench.get(weights), expected), 1e-7);
  EXPECT_EQ(bench.get(first), std::vector<float>(65));
}

// 1 - beta2^step is tiny at first: in float it would be off by 6e-4 here.
TEST_P(AdamWTest, BiasCorrectionIsWorkedOutInDouble) {
  Bench bench;
  AdamW settings = kSettings;
  settings.beta2 = 0.99999f;
  settings.step = 10;
  const auto gradient = random_values(64, 3);
  const std::vector<float> zeros(64);
  const Tensor weights = bench.put(zeros, {64, 1, 1, 1});
  const Tensor first = bench.put(zeros, {64, 1, 1, 1}), second = bench.put(zeros, {64, 1, 1, 1});
  bench.device->adamw(settings, bench.put(gradient, {64, 1, 1, 1}), weights, first, second, {});
  const reference::AdamWState none{widen(zeros), widen(zeros), widen(zeros)};
  EXPECT_LE(error_of(bench.get(weights), reference::adamw(settings, widen(gradient), none).weights),
            1e-6);
}

TEST_P(AdamWTest, SumOfSquaresIsExactToDouble) {
  Bench bench;
  for (const int64_t size : {0, 1, 7, 15, 16, 17, 63, 64, 65, 100'003}) {
    const auto x = random_values(size, 4);
    double expected = 0;
    for (const float value : x) expected += double(value) * double(value);
    const Tensor result = bench.put<double>({std::nan("")}, {1, 1, 1, 1});
    bench.device->sum_of_squares(bench.put(x, {size, 1, 1, 1}), result);
    EXPECT_LE(std::abs(bench.get<double>(result)[0] - expected), 1e-13 * expected) << size;
  }
}

TEST_P(AdamWTest, SumOfSquaresShowsWhatIsNotFinite) {
  Bench bench;
  for (const size_t place : {0, 20, 99}) {
    auto x = random_values(100, 5);
    x[place] = std::numeric_limits<float>::quiet_NaN();
    const Tensor result = bench.put<double>({0}, {1, 1, 1, 1});
    bench.device->sum_of_squares(bench.put(x, {100, 1, 1, 1}), result);
    EXPECT_TRUE(std::isnan(bench.get<double>(result)[0]));
  }
}

TEST(AdamWShapeTest, WrongShapesThrow) {
  Bench bench;
  const Tensor four = bench.poisoned({4, 1, 1, 1}), five = bench.poisoned({5, 1, 1, 1});
  EXPECT_THROW(bench.device->adamw(kSettings, four, five, five, five, {}), Error);
  EXPECT_THROW(bench.device->adamw(kSettings, four, four, four, five, {}), Error);
  AdamW counted_from_zero = kSettings;
  counted_from_zero.step = 0;
  EXPECT_THROW(bench.device->adamw(counted_from_zero, four, four, four, four, {}), Error);
  EXPECT_THROW(bench.device->sum_of_squares(four, five.slice(0, 1)), Error) << "result in f32";
}

}  // namespace
}  // namespace ringlet::test
