#include "train/position_bins.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "kernels/check.h"
#include "kernels/random.h"

namespace ringlet {
namespace {

double random_loss(int64_t index) {
  return 1 + 3 * CounterRandom(7, hash_name("losses")).uniform(uint64_t(index));
}

/// Mean and standard error of positions [first, last] of `windows` windows, in two passes.
MeanLoss plain_mean(int64_t length, int windows, int64_t first, int64_t last) {
  std::vector<double> losses;
  for (int64_t window = 0; window < windows; ++window) {
    for (int64_t p = first; p <= last; ++p) losses.push_back(random_loss(window * length + p));
  }
  double mean = 0, squares = 0;
  for (const double loss : losses) mean += loss / double(losses.size());
  for (const double loss : losses) squares += (loss - mean) * (loss - mean);
  const auto count = double(losses.size());
  return {int64_t(losses.size()), mean, std::sqrt(squares / (count - 1) / count)};
}

PositionBins gathered(int64_t length, int windows) {
  PositionBins bins(length);
  for (int64_t i = 0; i < length * windows; ++i) bins.add(i % length, random_loss(i));
  return bins;
}

TEST(PositionBins, BinsDoubleAndCoverEveryPositionOnce) {
  for (const int64_t length : {1, 2, 3, 4, 5, 8, 9, 100, 1024, 65536, 65537}) {
    const auto bins = PositionBins(length).bins();
    int64_t next = 0;
    for (size_t i = 0; i < bins.size(); ++i) {
      EXPECT_EQ(bins[i].first_position, next);
      EXPECT_EQ(bins[i].first_position, i == 0 ? 0 : int64_t(1) << (i - 1));
      EXPECT_GE(bins[i].last_position, bins[i].first_position);
      next = bins[i].last_position + 1;
    }
    EXPECT_EQ(next, length);
  }
}

TEST(PositionBins, MeansAndErrorsAreThoseOfTheTokens) {
  for (const int64_t length : {1, 2, 7, 64, 1000}) {
    const PositionBins bins = gathered(length, 3);
    for (const auto& [first, last, loss] : bins.bins()) {
      const MeanLoss expected = plain_mean(length, 3, first, last);
      EXPECT_EQ(loss.count, expected.count);
      EXPECT_NEAR(loss.mean, expected.mean, 1e-12);
      EXPECT_NEAR(loss.standard_error, expected.standard_error, 1e-10);
    }
    EXPECT_EQ(bins.count(), 3 * length);
    EXPECT_NEAR(bins.mean(), plain_mean(length, 3, 0, length - 1).mean, 1e-12);
    EXPECT_NEAR(bins.standard_error(), plain_mean(length, 3, 0, length - 1).standard_error, 1e-10);
  }
}

TEST(PositionBins, QuartersAreTheEndsOfTheWindow) {
  const PositionBins bins = gathered(100, 2);
  EXPECT_NEAR(bins.first_quarter(), plain_mean(100, 2, 0, 24).mean, 1e-12);
  EXPECT_NEAR(bins.last_quarter(), plain_mean(100, 2, 75, 99).mean, 1e-12);
  const PositionBins tiny = gathered(3, 2);
  EXPECT_NEAR(tiny.first_quarter(), plain_mean(3, 2, 0, 0).mean, 1e-12);
  EXPECT_NEAR(tiny.last_quarter(), plain_mean(3, 2, 2, 2).mean, 1e-12);
}

TEST(PositionBins, RanksMergeByAddingTheirFlatVectors) {
  constexpr int64_t kLength = 77;
  PositionBins whole(kLength);
  std::vector<PositionBins> ranks(3, PositionBins(kLength));
  for (int64_t i = 0; i < 5 * kLength; ++i) {
    whole.add(i % kLength, random_loss(i));
    ranks[size_t(i % 3)].add(i % kLength, random_loss(i));
  }
  std::vector<double> sum = ranks[0].to_flat();
  for (const size_t rank : {1, 2}) {
    const std::vector<double> flat = ranks[rank].to_flat();
    ASSERT_EQ(flat.size(), sum.size());
    for (size_t i = 0; i < sum.size(); ++i) sum[i] += flat[i];
  }
  const PositionBins merged = PositionBins::from_flat(kLength, sum);
  ASSERT_EQ(merged.bins().size(), whole.bins().size());
  for (size_t i = 0; i < whole.bins().size(); ++i) {
    EXPECT_EQ(merged.bins()[i].loss.count, whole.bins()[i].loss.count);
    EXPECT_NEAR(merged.bins()[i].loss.mean, whole.bins()[i].loss.mean, 1e-12);
  }
  EXPECT_NEAR(merged.first_quarter(), whole.first_quarter(), 1e-12);
  EXPECT_NEAR(merged.standard_error(), whole.standard_error(), 1e-10);
  EXPECT_THROW(PositionBins::from_flat(kLength + 100, sum), Error);
}

TEST(PositionBins, NothingGatheredIsNotANumberAndOneTokenHasNoError) {
  PositionBins bins(8);
  EXPECT_EQ(bins.count(), 0);
  EXPECT_TRUE(std::isnan(bins.mean()));
  EXPECT_TRUE(std::isnan(bins.first_quarter()));
  bins.add(3, 2.5);
  EXPECT_EQ(bins.mean(), 2.5);
  EXPECT_TRUE(std::isnan(bins.standard_error()));
  EXPECT_TRUE(std::isnan(bins.last_quarter()));
}

TEST(PositionBins, LossesThatAreNotFiniteShow) {
  for (const double wrong :
       {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()}) {
    PositionBins bins = gathered(8, 2);
    bins.add(5, wrong);
    EXPECT_FALSE(std::isfinite(bins.mean()));
    EXPECT_FALSE(std::isfinite(bins.standard_error()));
    EXPECT_TRUE(std::isfinite(bins.first_quarter()));
  }
}

TEST(PositionBins, EqualLossesHaveNoSpread) {
  PositionBins bins(4);
  for (int64_t i = 0; i < 400; ++i) bins.add(i % 4, 0.1);
  EXPECT_TRUE(bins.standard_error() >= 0 && bins.standard_error() < 1e-8);
}

TEST(PositionBins, PositionsOutsideTheWindowAreRefused) {
  PositionBins bins(8);
  EXPECT_THROW(bins.add(8, 1), Error);
  EXPECT_THROW(bins.add(-1, 1), Error);
  EXPECT_THROW(PositionBins(0), Error);
}

}  // namespace
}  // namespace ringlet
