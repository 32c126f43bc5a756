#include <gtest/gtest.h>

#include "tests/support/compare.h"
#include "tests/support/gradient_check.h"
#include "tests/support/host_tensor.h"
#include "tests/support/op_reference.h"
#include "tests/support/simd_targets.h"

namespace ringlet::test {
namespace {

constexpr float kScale = 0.37f;

/// Any label, every fifth -1.
std::vector<int32_t> random_labels(int64_t rows, int64_t vocabulary) {
  const CounterRandom random(1, hash_name("labels"));
  std::vector<int32_t> labels(rows);
  for (int64_t i = 0; i < rows; ++i) {
    labels[i] = i % 5 == 3 ? -1 : int32_t(random.bits(i) % vocabulary);
  }
  return labels;
}

/// The loss of one row of logits.
float loss_of(Bench& bench, const std::vector<float>& logits, int32_t label) {
  const Tensor losses = bench.poisoned({1, 1, 1, 1});
  bench.device->cross_entropy(bench.put(logits, {1, int64_t(logits.size()), 1, 1}),
                              bench.put<int32_t>({label}, {1, 1, 1, 1}), CrossEntropy::loss_only,
                              1, losses);
  return bench.get(losses)[0];
}

class LossTest : public SimdTargetTest {};
INSTANTIATE_TEST_SUITE_P(Simd, LossTest, each_simd_target(), simd_target_name);

TEST_P(LossTest, LossAndGradientAreTheReference) {
  Bench bench;
  for (const int64_t rows : {0, 1, 7, 65}) {
    for (const int64_t vocabulary : {1, 2, 63, 64, 65, 257, 1031, 2100}) {
      const auto logits = random_values(rows * vocabulary, 2);
      const auto labels = random_labels(rows, vocabulary);
      const Tensor label_tensor = bench.put(labels, {rows, 1, 1, 1});
      auto gradient = reference::cross_entropy_backward(widen(logits), labels);
      for (double& value : gradient) value *= double(kScale);
      for (const auto mode : {CrossEntropy::loss_only, CrossEntropy::loss_and_gradient}) {
        const Tensor x = bench.put(logits, {rows, vocabulary, 1, 1});
        const Tensor losses = bench.poisoned({rows, 1, 1, 1});
        bench.device->cross_entropy(x, label_tensor, mode, kScale, losses);
        EXPECT_LE(error_of(bench.get(losses), reference::cross_entropy(widen(logits), labels)),
                  kOutputTolerance);
        if (mode == CrossEntropy::loss_only) continue;
        EXPECT_LE(error_of(bench.get(x), gradient), kGradientTolerance)
            << rows << ' ' << vocabulary;
      }
    }
  }
}

// Where the loss is almost nothing it is the difference of floats near 1: right to a rounding of 1,
// not of itself.
TEST_P(LossTest, AConfidentRowIsRightToARoundingOfOne) {
  Bench bench;
  const std::vector<float> logits = {3, -9, -7, 14};
  const Tensor x = bench.put(logits, {1, 4, 1, 1}), losses = bench.poisoned({1, 1, 1, 1});
  bench.device->cross_entropy(x, bench.put<int32_t>({3}, {1, 1, 1, 1}),
                              CrossEntropy::loss_and_gradient, 1, losses);
  const auto gradient = bench.get(x);
  const auto expected = reference::cross_entropy_backward(widen(logits), {3});
  EXPECT_NEAR(bench.get(losses)[0], reference::cross_entropy(widen(logits), {3})[0], 1.2e-7);
  for (size_t i = 0; i < 4; ++i) EXPECT_NEAR(gradient[i], expected[i], 1.2e-7) << i;
}

TEST_P(LossTest, ARowThatIsNotScoredGivesExactZeros) {
  Bench bench;
  const Tensor x = bench.put(random_values(2 * 65, 3), {2, 65, 1, 1});
  const Tensor losses = bench.poisoned({2, 1, 1, 1});
  bench.device->cross_entropy(x, bench.put<int32_t>({-1, 64}, {2, 1, 1, 1}),
                              CrossEntropy::loss_and_gradient, 1, losses);
  EXPECT_EQ(bench.get(losses)[0], 0.0f);
  EXPECT_EQ(bench.get(x.slice(0, 1)), std::vector<float>(65, 0.0f));
}

// -log(softmax) would be infinite here, and e^x would overflow.
TEST_P(LossTest, HugeLogitsStayFinite) {
  Bench bench;
  std::vector<float> logits(100, -1e4f);
  logits[3] = 1e4f;
  EXPECT_EQ(loss_of(bench, logits, 3), 0.0f);
  EXPECT_EQ(loss_of(bench, logits, 7), 2e4f);
  for (const float level : {1e4f, -1e4f}) {
    EXPECT_NEAR(loss_of(bench, std::vector<float>(100, level), 0), std::log(100.0f), 1e-5f);
  }
}

// The sum of many small terms: one running sum in float would be off in the sixth digit.
TEST_P(LossTest, ALargeVocabularyLosesNothing) {
  Bench bench;
  const auto logits = random_values(200'000, 7, /*scale=*/0.5);
  EXPECT_NEAR(loss_of(bench, logits, 11), reference::cross_entropy(widen(logits), {11})[0], 1e-6);
}

TEST_P(LossTest, OneNanLogitMakesTheLossNan) {
  Bench bench;
  for (const size_t place : {0, 5, 16, 99}) {
    auto logits = random_values(100, 4);
    logits[place] = std::numeric_limits<float>::quiet_NaN();
    EXPECT_TRUE(std::isnan(loss_of(bench, logits, 50))) << place;
  }
}

TEST(LossReferenceTest, GradientIsTheCentralDifferenceOfTheLoss) {
  const auto logits = widen(random_values(6 * 9, 5));
  const auto labels = random_labels(6, 9);
  const auto expected = central_differences(
      [&](const auto& at) {
        return dot(reference::cross_entropy(at, labels), std::vector<double>(6, 1.0));
      },
      logits);
  EXPECT_LE(error_of(reference::cross_entropy_backward(logits, labels), expected),
            kDifferenceTolerance);
}

TEST(LossErrorTest, LabelsOutsideTheVocabularyAndWrongShapesThrow) {
  Bench bench;
  const auto logits = random_values(9, 6);
  EXPECT_THROW(loss_of(bench, logits, 9), Error);
  EXPECT_THROW(loss_of(bench, logits, -2), Error);
  const Tensor x = bench.put(logits, {1, 9, 1, 1}), losses = bench.poisoned({1, 1, 1, 1});
  const Tensor labels = bench.put<int32_t>({1, 2}, {2, 1, 1, 1});
  EXPECT_THROW(bench.device->cross_entropy(x, labels, CrossEntropy::loss_only, 1, losses), Error);
  EXPECT_THROW(bench.device->cross_entropy(x, losses, CrossEntropy::loss_only, 1, losses), Error);
}

}  // namespace
}  // namespace ringlet::test
