#include "tests/support/compare.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

namespace ringlet::test {
namespace {

/// As tests compare: EXPECT_LE(error, tolerance).
bool passes(const std::vector<float>& actual, const std::vector<double>& expected) {
  return error_of(actual, expected) <= kOutputTolerance;
}

TEST(CompareTest, EqualPassesAndTheErrorIsRelative) {
  EXPECT_TRUE(passes({1, 2, 3}, {1, 2, 3}));
  EXPECT_TRUE(passes({}, {}));
  EXPECT_DOUBLE_EQ(error_of(std::vector<float>{3, 4}, std::vector<double>{0, 4}), 0.75);
  EXPECT_DOUBLE_EQ(error_of(std::vector<float>{300, 400}, std::vector<double>{0, 400}), 0.75);
  EXPECT_DOUBLE_EQ(error_of(std::vector<float>{2}, std::vector<double>{0}), 2);
}

TEST(CompareTest, NanInfinityAndSizesFail) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  EXPECT_FALSE(passes({1, nan}, {1, 2}));
  EXPECT_FALSE(passes({1, 2}, {1, std::nan("")}));
  EXPECT_FALSE(passes({nan}, {std::nan("")}));
  EXPECT_FALSE(passes({1, float(HUGE_VAL)}, {1, 2}));
  EXPECT_FALSE(passes({1, 2}, {1, HUGE_VAL}));
  EXPECT_FALSE(passes({1, 2}, {1, 2, 3}));
  EXPECT_FALSE(passes({}, {1}));
}

TEST(CompareTest, OneWrongElementAmongManyFails) {
  std::vector<float> actual(1000, 1.0f);
  const std::vector<double> expected(1000, 1.0);
  actual[999] = 1.001f;
  EXPECT_FALSE(passes(actual, expected));
}

}  // namespace
}  // namespace ringlet::test
