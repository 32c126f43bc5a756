#include "train/sampler.h"

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <vector>

#include "kernels/check.h"
#include "train/commands/generate.h"

namespace ringlet {
namespace {

const std::vector<float> kLogits{0.0f, 2.0f, 1.0f, 2.0f, -1.0f};

std::array<int, 5> draw_many(const SamplingSettings& settings) {
  std::array<int, 5> counts{};
  for (int i = 0; i < 10'000; ++i) ++counts[sample_token(kLogits, settings, (i + 0.5) / 10'000)];
  return counts;
}

TEST(SamplerTest, TemperatureZeroTakesTheFirstOfTheMostLikely) {
  for (const double uniform : {0.001, 0.5, 0.999}) {
    EXPECT_EQ(sample_token(kLogits, {.temperature = 0, .top_k = 0, .top_p = 1}, uniform), 1);
  }
}

TEST(SamplerTest, FrequenciesAreTheSoftmax) {
  const std::array<int, 5> counts = draw_many({});
  double total = 0;
  for (const float logit : kLogits) total += std::exp(double(logit));
  for (size_t i = 0; i < kLogits.size(); ++i) {
    EXPECT_NEAR(counts[i], 10'000 * std::exp(double(kLogits[i])) / total, 2) << i;
  }
}

TEST(SamplerTest, TopKKeepsTheMostLikely) {
  const std::array<int, 5> counts = draw_many({.temperature = 1, .top_k = 2, .top_p = 1});
  EXPECT_EQ(counts[0] + counts[2] + counts[4], 0);
  EXPECT_NEAR(counts[1], 5000, 2);
}

TEST(SamplerTest, TopPKeepsTheSmallestSetWithThatProbability) {
  // The two logits of 2 hold 2 * 7.389 / 18.86 = 78 % of the probability; 1 holds 14 %.
  const std::array<int, 5> narrow = draw_many({.temperature = 1, .top_k = 0, .top_p = 0.75});
  EXPECT_EQ(narrow[0] + narrow[2] + narrow[4], 0);
  const std::array<int, 5> wide = draw_many({.temperature = 1, .top_k = 0, .top_p = 0.85});
  EXPECT_GT(wide[2], 0);
  EXPECT_EQ(wide[0] + wide[4], 0);
}

TEST(SamplerTest, RefusesWhatCannotBe) {
  EXPECT_THROW(validate({.temperature = -1, .top_k = 0, .top_p = 1}), UsageError);
  EXPECT_THROW(validate({.temperature = 1, .top_k = -1, .top_p = 1}), UsageError);
  EXPECT_THROW(validate({.temperature = 1, .top_k = 0, .top_p = 0}), UsageError);
  EXPECT_THROW(validate({.temperature = 1, .top_k = 0, .top_p = std::nan("")}), UsageError);
}

// What stands for a character that is not whole yet is not shown.
TEST(GenerateTest, OnlySettledTextIsShown) {
  EXPECT_EQ(settled("plain"), "plain");
  EXPECT_EQ(settled("\xEF\xBF\xBD"), "");
  EXPECT_EQ(settled("a\xEF\xBF\xBD\xEF\xBF\xBD"), "a");
  EXPECT_EQ(settled("a\xEF\xBF\xBD i"), "a\xEF\xBF\xBD i");
}

}  // namespace
}  // namespace ringlet
