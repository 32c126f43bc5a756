#include "data/window_plan.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "kernels/random.h"
#include "tests/data/data_support.h"

namespace ringlet::test {

namespace {

std::vector<int64_t> random_offsets(int64_t documents, int64_t longest, uint64_t seed) {
  std::vector<int64_t> offsets{0};
  const CounterRandom random(seed, 1);
  for (int64_t i = 0; i < documents; ++i) {
    // lengths over all scales, so that short and long ones stand side by side
    const double length = std::exp(random.uniform(uint64_t(i)) * std::log(double(longest)));
    offsets.push_back(offsets.back() + std::max<int64_t>(1, int64_t(length)));
  }
  return offsets;
}

/// The rule of the header, document by document, the slow and plain way: {first, count} of each
/// window.
std::vector<std::pair<int64_t, int64_t>> plan_plainly(const std::vector<int64_t>& offsets,
                                                      int64_t T) {
  std::vector<std::pair<int64_t, int64_t>> windows;
  int64_t start = 0, fill = 0;
  const auto close = [&] {
    if (fill > 0) windows.emplace_back(start, fill);
    start += fill;
    fill = 0;
  };
  for (size_t d = 1; d < offsets.size(); ++d) {
    int64_t length = offsets[d] - offsets[d - 1];
    if (length <= T && fill + length > T) close();
    while (length > 0) {
      const int64_t part = std::min(length, T - fill);
      fill += part;
      length -= part;
      if (fill == T) close();
    }
  }
  close();
  return windows;
}

TEST(WindowPlanTest, FollowsTheRuleAndCoversEveryTokenOnce) {
  for (uint64_t seed = 0; seed < 40; ++seed) {
    const auto offsets = random_offsets(1 + int64_t(seed * 13 % 400), 1 + int64_t(seed * 37), seed);
    for (const int64_t T : {1, 2, 7, 64, 1000}) {
      if (offsets.back() < T) continue;
      const WindowPlan plan(offsets, T);
      const auto expected = plan_plainly(offsets, T);
      ASSERT_EQ(plan.window_count(), std::ssize(expected)) << seed << " " << T;
      int64_t next_token = 0;
      for (int64_t i = 0; i < plan.window_count(); i += 1 + int64_t(seed % 7)) {
        const Window window = plan.window(i);
        ASSERT_EQ(window.first_token, expected[size_t(i)].first) << seed << " " << T << " " << i;
        ASSERT_EQ(window.token_count, expected[size_t(i)].second);
        if (seed % 7 == 0) {
          ASSERT_EQ(window.first_token, next_token);
        }
        next_token = window.first_token + window.token_count;
      }
    }
  }
}

TEST(WindowPlanTest, DocumentsThatFitAWindowAreNeverCut) {
  constexpr int64_t T = 128;
  const auto offsets = random_offsets(3000, 1000, 3);
  const WindowPlan plan(offsets, T);
  std::vector<int64_t> cuts;
  for (int64_t i = 0; i < plan.window_count(); ++i) cuts.push_back(plan.window(i).first_token);
  ASSERT_GT(plan.window_count(), 600);  // more than two anchors
  for (size_t d = 1; d < offsets.size(); ++d) {
    if (offsets[d] - offsets[d - 1] > T) continue;
    const auto cut = std::upper_bound(cuts.begin(), cuts.end(), offsets[d - 1]);
    EXPECT_TRUE(cut == cuts.end() || *cut >= offsets[d]) << "document " << d - 1 << " is cut";
  }
}

TEST(WindowPlanTest, DocumentStartsListDocumentsAndPadding) {
  const std::vector<int64_t> offsets{0, 3, 5, 9, 30, 31};
  const WindowPlan plan(offsets, 8);
  ASSERT_EQ(plan.window_count(), 5);
  const Window first = plan.window(0);  // 3 + 2 fit, 4 more do not
  EXPECT_EQ(first.token_count, 5);
  EXPECT_EQ(first.document_starts, (std::vector<int64_t>{0, 3, 5}));
  const Window second = plan.window(1);  // 4, then the long one begins at once
  EXPECT_EQ(second.first_token, 5);
  EXPECT_EQ(second.token_count, 8);
  EXPECT_EQ(second.document_starts, (std::vector<int64_t>{0, 4}));
  EXPECT_EQ(plan.window(2).document_starts, (std::vector<int64_t>{0}));
  const Window last = plan.window(4);  // the long one's last token, the short one, padding
  EXPECT_EQ(last.first_token, 29);
  EXPECT_EQ(last.document_starts, (std::vector<int64_t>{0, 1, 2}));
}

TEST(WindowPlanTest, RefusesACorpusShorterThanAWindow) {
  const std::vector<int64_t> offsets{0, 4, 10};
  EXPECT_EQ(WindowPlan(offsets, 10).window_count(), 1);
  expect_error([&] { WindowPlan(offsets, 11); }, {"10 tokens", "11"});
}

}  // namespace

}  // namespace ringlet::test
