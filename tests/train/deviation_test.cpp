// Comparisons that NaN cannot slip through.
#include "train/verify/deviation.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

namespace ringlet {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

TEST(DeviationTest, NanFails) {
  EXPECT_TRUE((Deviation{"", "", 1e-6, 1e-5}).passed());
  EXPECT_TRUE((Deviation{"", "", 0, 1e-5}).passed());
  EXPECT_FALSE((Deviation{"", "", 2e-5, 1e-5}).passed());
  EXPECT_FALSE((Deviation{"", "", kNan, 1e-5}).passed());
}

TEST(DeviationTest, NanIsTheWorst) {
  const Deviation small{"", "", 1e-6, 1e-5}, large{"", "", 1, 1e-5}, nan{"", "", kNan, 1e-5};
  EXPECT_TRUE(worse(large, small));
  EXPECT_FALSE(worse(small, large));
  EXPECT_FALSE(worse(small, small));
  EXPECT_TRUE(worse(nan, large));
  EXPECT_FALSE(worse(large, nan));
  EXPECT_FALSE(worse(nan, nan));
}

TEST(DeviationTest, WorseIsMeasuredByWhatIsAllowed) {
  EXPECT_TRUE(worse({"", "", 1e-6, 1e-6}, {"", "", 1e-3, 1}));
}

TEST(WorstRowTest, FindsTheRowAndTheColumn) {
  const std::vector<double> expected{3, 4, 3, 4, 3, 4};
  std::vector<double> actual = expected;
  actual[0] += 0.1;
  actual[5] += 0.5;
  const RowError worst = worst_row(actual, expected, 2);
  EXPECT_EQ(worst.row, 2);
  EXPECT_EQ(worst.column, 1);
  EXPECT_NEAR(worst.error, 0.1, 1e-12);
}

TEST(WorstRowTest, SmallRowsAreMeasuredAgainstTheTypicalOneAndTheFloor) {
  const std::vector<double> expected{0, 2, 0, 0};  // widths of 1: root mean square 1
  const std::vector<double> actual{0.1, 2, 0, 0};
  EXPECT_NEAR(worst_row(actual, expected, 1).error, 0.1, 1e-12);
  EXPECT_NEAR(worst_row(actual, expected, 1, 10).error, 0.01, 1e-12);
}

TEST(WorstRowTest, NanIsTheWorstWhereverItStands) {
  const std::vector<double> expected{1, 1, 1, 1, 1, 1};
  for (size_t i = 0; i < expected.size(); ++i) {
    for (const double elsewhere : {1.0, 1e9}) {
      std::vector<double> actual(expected.size(), elsewhere);
      actual[i] = kNan;
      const RowError worst = worst_row(actual, expected, 2);
      EXPECT_EQ(worst.row, int64_t(i / 2));
      EXPECT_EQ(worst.column, int64_t(i % 2));
      EXPECT_TRUE(std::isnan(worst.error));
    }
  }
}

TEST(WorstRowTest, NoRowsHaveNoWorst) { EXPECT_EQ(worst_row({}, {}, 3).row, -1); }

}  // namespace
}  // namespace ringlet
