#include "tests/support/scored_tokens.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>

namespace ringlet::test {
namespace {

constexpr double kUnknown = std::numeric_limits<double>::quiet_NaN();

MeanLoss plain_mean_of(const std::vector<ScoredToken>& tokens, int64_t ScoredToken::*index,
                       int64_t first, int64_t last) {
  std::vector<double> losses;
  for (const ScoredToken& token : tokens) {
    if (token.*index >= first && token.*index <= last) losses.push_back(token.loss);
  }
  return plain_mean(losses);
}

/// Equal within the tolerance, or both not known.
void expect_near(double actual, double expected, double tolerance) {
  if (std::isnan(expected)) {
    EXPECT_TRUE(std::isnan(actual)) << actual;
  } else {
    EXPECT_NEAR(actual, expected, tolerance);
  }
}

void expect_mean(const MeanLoss& actual, const MeanLoss& expected, BinTolerance tolerance) {
  EXPECT_EQ(actual.count, expected.count);
  expect_near(actual.mean, expected.mean, tolerance.mean);
  expect_near(actual.standard_error, expected.standard_error, tolerance.standard_error);
}

}  // namespace

MeanLoss plain_mean(const std::vector<double>& losses) {
  const auto count = double(losses.size());
  if (count == 0) return {0, kUnknown, kUnknown};
  double mean = 0, squares = 0;
  for (const double loss : losses) mean += loss / count;
  if (count == 1) return {1, mean, kUnknown};
  for (const double loss : losses) squares += (loss - mean) * (loss - mean);
  return {int64_t(losses.size()), mean, std::sqrt(squares / (count - 1) / count)};
}

MeanLoss plain_mean(const std::vector<ScoredToken>& tokens, int64_t first, int64_t last) {
  return plain_mean_of(tokens, &ScoredToken::position, first, last);
}

void expect_list_of(const std::vector<ScoredToken>& tokens, int64_t ScoredToken::*index,
                    int64_t length, const std::vector<PositionBins::Bin>& actual,
                    BinTolerance tolerance) {
  int64_t next = 0, width = 1;
  for (const auto& [first, last, loss] : actual) {
    SCOPED_TRACE(testing::Message() << "bin " << first << " to " << last);
    EXPECT_EQ(first, next);
    EXPECT_EQ(last, std::min(first + width, length) - 1);
    expect_mean(loss, plain_mean_of(tokens, index, first, last), tolerance);
    next = last + 1;
    width = next;  // 0, 1, 2-3, 4-7, ...
  }
  EXPECT_EQ(next, length);
}

void expect_bins_of(const std::vector<ScoredToken>& tokens, int64_t length,
                    const PositionBins& actual, BinTolerance tolerance) {
  expect_list_of(tokens, &ScoredToken::position, length, actual.by_position(), tolerance);
  expect_list_of(tokens, &ScoredToken::distance, length, actual.by_distance(), tolerance);
  expect_mean(actual.all(), plain_mean(tokens, 0, length - 1), tolerance);
  const int64_t quarter = std::max<int64_t>(1, length / 4);
  const MeanLoss first = plain_mean(tokens, 0, quarter - 1);
  const MeanLoss last = plain_mean(tokens, length - quarter, length - 1);
  expect_near(actual.first_quarter(), first.mean, tolerance.mean);
  expect_near(actual.last_quarter(), last.mean, tolerance.mean);
  EXPECT_EQ(actual.distance_differs(), std::ranges::any_of(tokens, [](const ScoredToken& token) {
              return token.distance < token.position;
            }));
  const MeanLoss early = plain_mean(tokens, 45, 54), late = plain_mean(tokens, 475, 524);
  const auto score = actual.in_context_score();
  ASSERT_EQ(score.has_value(), length >= 525 && early.count > 0 && late.count > 0);
  if (!score) return;
  expect_mean(score->around_50, early, tolerance);
  expect_mean(score->around_500, late, tolerance);
  expect_near(score->score(), late.mean - early.mean, 2 * tolerance.mean);
  expect_near(score->standard_error(),
              std::sqrt(early.standard_error * early.standard_error +
                        late.standard_error * late.standard_error),
              2 * tolerance.standard_error);
}

}  // namespace ringlet::test
