#include "kernels/random.h"

#include <gtest/gtest.h>

#include <set>

namespace ringlet::test {
namespace {

// Weights, samples and tests of the past depend on these bits.
TEST(RandomTest, BitsAreThoseOfThePublishedGenerators) {
  EXPECT_EQ(mix_bits(0), 0xe220a8397b1dcdafu);  // SplitMix64 with seed 0, first output
  EXPECT_EQ(mix_bits(0x9e3779b97f4a7c15u), 0x6e789e6aa1b965f4u);  // and the second
  EXPECT_EQ(hash_name(""), 0xcbf29ce484222325u);
  EXPECT_EQ(hash_name("a"), 0xaf63dc4c8601ec8cu);
}

TEST(RandomTest, SeedsStreamsAndIndicesAllMatter) {
  std::set<uint64_t> seen;
  for (uint64_t seed = 0; seed < 8; ++seed) {
    for (uint64_t stream = 0; stream < 8; ++stream) {
      for (uint64_t index = 0; index < 8; ++index) {
        seen.insert(CounterRandom(seed, stream).bits(index));
      }
    }
  }
  EXPECT_EQ(seen.size(), 512u);
}

TEST(RandomTest, UniformIsEvenAndOpenAtBothEnds) {
  const CounterRandom random(1, 2);
  int counts[10] = {};
  for (int64_t i = 0; i < 100'000; ++i) {
    const double value = random.uniform(i);
    ASSERT_GT(value, 0);
    ASSERT_LT(value, 1);
    ++counts[int(10 * value)];
  }
  for (const int count : counts) EXPECT_NEAR(count, 10'000, 500);  // five standard deviations
}

TEST(RandomTest, NormalHasItsMoments) {
  const CounterRandom random(3, 4);
  double sums[4] = {};
  const int64_t count = 200'000;
  for (int64_t i = 0; i < count; ++i) {
    const double value = random.normal(i);
    ASSERT_TRUE(std::isfinite(value));
    double power = value;
    for (double& sum : sums) {
      sum += power / double(count);
      power *= value;
    }
  }
  EXPECT_NEAR(sums[0], 0, 0.012);  // five standard deviations each
  EXPECT_NEAR(sums[1], 1, 0.016);
  EXPECT_NEAR(sums[2], 0, 0.044);
  EXPECT_NEAR(sums[3], 3, 0.11);
}

}  // namespace
}  // namespace ringlet::test
