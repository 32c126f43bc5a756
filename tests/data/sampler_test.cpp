#include "data/sampler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "kernels/check.h"

namespace ringlet::test {

namespace {

TEST(PermutationTest, IsOneToOneForEveryCountBelow3000) {
  for (int64_t count = 1; count < 3000; ++count) {
    const Permutation permutation(uint64_t(count) * 31, count);
    std::vector<char> seen(size_t(count), 0);
    for (int64_t i = 0; i < count; ++i) {
      const int64_t place = permutation(i);
      ASSERT_TRUE(place >= 0 && place < count) << count;
      ASSERT_FALSE(seen[size_t(place)]) << count << " gives " << place << " twice";
      seen[size_t(place)] = 1;
    }
  }
}

TEST(PermutationTest, WorksOnCountsBeyondMemory) {
  const int64_t count = (int64_t{1} << 52) + 12345;
  const Permutation permutation(7, count);
  for (const int64_t i : {int64_t{0}, count / 2, count - 1}) {
    EXPECT_TRUE(permutation(i) >= 0 && permutation(i) < count);
  }
}

// Where does the first of 16 go, over many keys? 15 degrees of freedom: chi^2 is below 50 but once
// in 100,000.
TEST(PermutationTest, PlacesAreEquallyLikelyOverKeys) {
  std::vector<double> seen(16);
  for (uint64_t key = 0; key < 16'000; ++key) seen[size_t(Permutation(key, 16)(0))] += 1;
  double chi_squared = 0;
  for (const double count : seen) chi_squared += (count - 1000) * (count - 1000) / 1000;
  EXPECT_LT(chi_squared, 50);
}

TEST(PermutationTest, RefusesNothingAndPlacesOutside) {
  EXPECT_THROW(Permutation(1, 0), Error);
  EXPECT_THROW(Permutation(1, 5)(5), Error);
  EXPECT_THROW(Permutation(1, 5)(-1), Error);
}

TEST(WindowOrderTest, EveryEpochHoldsEveryWindowOnceInItsOwnOrder) {
  constexpr int64_t kWindows = 100;
  std::vector<std::vector<int64_t>> epochs;
  for (int64_t epoch = 0; epoch < 3; ++epoch) {
    auto& order = epochs.emplace_back();
    for (int64_t i = 0; i < kWindows; ++i) {
      order.push_back(window_of(5, epoch * kWindows + i, kWindows, OrderMode::shuffled));
    }
    auto sorted = order;
    std::sort(sorted.begin(), sorted.end());
    for (int64_t i = 0; i < kWindows; ++i) EXPECT_EQ(sorted[size_t(i)], i);
  }
  EXPECT_NE(epochs[0], epochs[1]);
  EXPECT_NE(epochs[1], epochs[2]);
  EXPECT_NE(window_of(5, 3, 1000, OrderMode::shuffled), window_of(6, 3, 1000, OrderMode::shuffled));
}

TEST(WindowOrderTest, SequentialCountsUpAndBeginsAgain) {
  for (int64_t c = 0; c < 20; ++c) EXPECT_EQ(window_of(1, c, 7, OrderMode::sequential), c % 7);
}

}  // namespace

}  // namespace ringlet::test
