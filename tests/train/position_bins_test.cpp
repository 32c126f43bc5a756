#include "train/position_bins.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/check.h"
#include "kernels/random.h"
#include "tests/support/ring_case.h"
#include "tests/support/scored_tokens.h"
#include "train/evaluation.h"

namespace ringlet::test {
namespace {

double random_loss(int64_t index) {
  return 1 + 3 * CounterRandom(7, hash_name("losses")).uniform(uint64_t(index));
}

/// All tokens of windows, each with a document that begins at every multiple of `document`.
std::vector<ScoredToken> some_tokens(int64_t length, int64_t windows, int64_t document) {
  std::vector<ScoredToken> tokens;
  for (int64_t i = 0; i < length * windows; ++i) {
    tokens.push_back({i % length, i % length % document, random_loss(i)});
  }
  return tokens;
}

PositionBins gathered(const std::vector<ScoredToken>& tokens, int64_t length) {
  PositionBins bins(length);
  for (const ScoredToken& token : tokens) bins.add(token.position, token.distance, token.loss);
  return bins;
}

TEST(PositionBins, BinsDoubleAndCoverEveryPositionOnce) {
  for (const int64_t length : {1, 2, 3, 4, 5, 8, 9, 100, 1024, 65536, 65537}) {
    expect_bins_of({}, length, PositionBins(length));
  }
}

TEST(PositionBins, MeansAndErrorsAreThoseOfTheTokens) {
  for (const int64_t length : {1, 2, 3, 7, 64, 524, 525, 1000}) {
    for (const int64_t document : {int64_t(1), int64_t(3), int64_t(50), length}) {
      SCOPED_TRACE(testing::Message() << "length " << length << ", documents of " << document);
      const auto tokens = some_tokens(length, 3, document);
      expect_bins_of(tokens, length, gathered(tokens, length));
    }
  }
}

TEST(PositionBins, RanksMergeByAddingTheirFlatVectors) {
  constexpr int64_t kLength = 777;
  const auto tokens = some_tokens(kLength, 5, 100);
  std::vector<PositionBins> ranks(3, PositionBins(kLength));
  for (size_t i = 0; i < tokens.size(); ++i) {
    ranks[i % 3].add(tokens[i].position, tokens[i].distance, tokens[i].loss);
  }
  std::vector<double> sum = ranks[0].to_flat();
  for (const size_t rank : {1, 2}) {
    const std::vector<double> flat = ranks[rank].to_flat();
    ASSERT_EQ(flat.size(), sum.size());
    for (size_t i = 0; i < sum.size(); ++i) sum[i] += flat[i];
  }
  expect_bins_of(tokens, kLength, PositionBins::from_flat(kLength, sum));
  EXPECT_THROW(PositionBins::from_flat(2 * kLength, sum), Error);
}

TEST(PositionBins, NothingGatheredIsNotANumberAndOneTokenHasNoError) {
  PositionBins bins(8);
  EXPECT_EQ(bins.count(), 0);
  EXPECT_TRUE(std::isnan(bins.mean()));
  EXPECT_TRUE(std::isnan(bins.first_quarter()));
  bins.add(3, 3, 2.5);
  EXPECT_EQ(bins.mean(), 2.5);
  EXPECT_TRUE(std::isnan(bins.standard_error()));
  EXPECT_TRUE(std::isnan(bins.last_quarter()));
}

TEST(PositionBins, LossesThatAreNotFiniteShow) {
  for (const double wrong :
       {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()}) {
    PositionBins bins = gathered(some_tokens(8, 2, 8), 8);
    bins.add(5, 1, wrong);
    EXPECT_FALSE(std::isfinite(bins.mean()));
    EXPECT_FALSE(std::isfinite(bins.standard_error()));
    EXPECT_FALSE(std::isfinite(bins.by_position()[3].loss.mean));
    EXPECT_FALSE(std::isfinite(bins.by_distance()[1].loss.mean));
    EXPECT_TRUE(std::isfinite(bins.by_distance()[3].loss.mean));
    EXPECT_TRUE(std::isfinite(bins.first_quarter()));
  }
}

TEST(PositionBins, EqualLossesHaveNoSpread) {
  PositionBins bins(4);
  for (int64_t i = 0; i < 400; ++i) bins.add(i % 4, 0, 0.1);
  EXPECT_TRUE(bins.standard_error() >= 0 && bins.standard_error() < 1e-8);
}

TEST(PositionBins, PositionsOutsideTheWindowOrBeforeTheDocumentAreRefused) {
  PositionBins bins(8);
  EXPECT_THROW(bins.add(8, 0, 1), Error);
  EXPECT_THROW(bins.add(-1, -1, 1), Error);
  EXPECT_THROW(bins.add(3, 4, 1), Error);
  EXPECT_THROW(bins.add(3, -1, 1), Error);
  EXPECT_THROW(PositionBins(0), Error);
}

TEST(PositionBins, TheInContextScoreIsLateMinusEarly) {
  PositionBins bins(525);
  for (int64_t p = 0; p < 525; ++p) {
    const bool early = p >= 45 && p <= 54, late = p >= 475 && p <= 524;
    bins.add(p, p, early ? (p % 2 == 0 ? 3.0 : 5.0) : late ? 1.5 : 100.0);
  }
  const InContextScore score = bins.in_context_score().value();
  EXPECT_EQ(score.around_50.count, 10);
  EXPECT_EQ(score.around_500.count, 50);
  EXPECT_EQ(score.score(), 1.5 - 4);
  EXPECT_NEAR(score.standard_error(), 1.0 / 3, 1e-12);  // sqrt(10 / 9) / sqrt(10), and zero
}

TEST(PositionBins, ThereIsNoInContextScoreWithoutTokensAroundPosition500) {
  EXPECT_FALSE(gathered(some_tokens(524, 2, 524), 524).in_context_score().has_value());
  auto tokens = some_tokens(525, 2, 525);
  EXPECT_TRUE(gathered(tokens, 525).in_context_score().has_value());
  std::erase_if(tokens, [](const ScoredToken& token) { return token.position >= 475; });
  EXPECT_FALSE(gathered(tokens, 525).in_context_score().has_value());
}

/// A window whose documents begin at `starts`, padded from `token_count` on; here and there a row
/// without a label, whose loss is not a number.
struct WindowCase {
  Window window;
  std::vector<int32_t> labels;
  std::vector<float> losses;
  std::vector<ScoredToken> tokens;
};

WindowCase random_window(int64_t length, int64_t token_count, std::vector<int64_t> starts,
                         int64_t seed) {
  WindowCase c;
  for (int64_t p = 0, start = 0; p < length; ++p) {
    if (std::ranges::find(starts, p) != starts.end()) start = p;
    const bool scored = p < token_count && CounterRandom(3, 0).bits(seed * length + p) % 5 != 0;
    c.labels.push_back(scored ? 1 : -1);
    c.losses.push_back(scored ? float(random_loss(seed * length + p)) : std::nanf(""));
    if (scored) c.tokens.push_back({p, p - start, c.losses.back()});
  }
  if (token_count < length) starts.push_back(token_count);
  c.window = {0, 0, token_count, std::move(starts)};
  return c;
}

TEST(AddLosses, EveryLayoutGivesTheBinsOfAPlainLoop) {
  for (const int64_t length : {1, 2, 61, 530, 1000}) {
    std::vector<WindowCase> windows{random_window(length, length, {0}, 1),
                                    random_window(length, length - length / 4, {0}, 2)};
    if (length > 60) {
      windows.push_back(random_window(length, length - 2, {0, 1, 2, 7, 50, length - 3}, 3));
      windows.push_back(random_window(length, length, {0, 33, 48, 49, length - 1}, 4));
    }
    std::vector<ScoredToken> tokens;
    for (const WindowCase& c : windows) tokens.insert(tokens.end(), c.tokens.begin(), c.tokens.end());
    for (const Layout name : {Layout::contiguous, Layout::zigzag, Layout::striped}) {
      for (const int ring_size : {1, 2, 3, 5}) {
        SCOPED_TRACE(testing::Message() << name_of(name) << " R=" << ring_size << " T=" << length);
        const SequenceLayout layout = make_layout(name, length, ring_size);
        std::vector<double> sum(PositionBins(length).to_flat().size());
        for (const std::vector<Piece>& pieces : layout.ranks) {
          PositionBins own(length);
          for (const WindowCase& c : windows) {
            const Batch batch{c.window, {}, take_rows(c.labels, pieces)};
            add_losses(take_rows(c.losses, pieces), batch, pieces, own);
          }
          const std::vector<double> flat = own.to_flat();
          for (size_t i = 0; i < sum.size(); ++i) sum[i] += flat[i];
        }
        expect_bins_of(tokens, length, PositionBins::from_flat(length, sum));
      }
    }
  }
}

}  // namespace
}  // namespace ringlet::test
