#include "data/prefetch.h"

#include <gtest/gtest.h>

#include <atomic>

#include "tests/data/data_support.h"

namespace ringlet::test {

namespace {

class PrefetchTest : public testing::Test {
 protected:
  const Folder folder_;
  const Corpus corpus_ = Corpus::open(write_counting_corpus(folder_.file("c.h5"), {1000}));
  const WindowReader reader_{corpus_, 10};
  const std::vector<Piece> pieces_{{0, 1, 0, 10}};
};

TEST_F(PrefetchTest, GivesTheWindowsOfTheOrderFromTheFirstOn) {
  const auto order = [](int64_t k) { return (k * 37 + 5) % 100; };
  for (const int depth : {1, 2, 16}) {
    Prefetcher prefetcher(reader_, pieces_, order, 7, depth);
    for (int64_t k = 7; k < 60; ++k) {
      const Batch& batch = prefetcher.next();
      EXPECT_EQ(batch.window.index, order(k));
      EXPECT_EQ(batch.tokens, reader_.read(order(k), pieces_).tokens);
    }
  }
}

TEST_F(PrefetchTest, ReadsNoFurtherAheadThanItsDepth) {
  std::atomic<int64_t> asked{0};
  const auto order = [&](int64_t k) {
    asked = k + 1;
    return k % 100;
  };
  Prefetcher prefetcher(reader_, pieces_, order, 0, 3);
  for (int64_t k = 0; k < 5; ++k) {
    (void)prefetcher.next();
    std::this_thread::sleep_for(std::chrono::milliseconds(20));  // time to go too far
    EXPECT_LE(asked, k + 1 + 3);
  }
}

TEST_F(PrefetchTest, AWindowStaysUntilTheNextIsAskedFor) {
  Prefetcher prefetcher(reader_, pieces_, [](int64_t k) { return k % 100; }, 0, 2);
  for (int64_t k = 0; k < 20; ++k) {
    const Batch& batch = prefetcher.next();
    std::this_thread::sleep_for(std::chrono::milliseconds(5));  // the reader fills all that it may
    EXPECT_EQ(batch.window.index, k);
    EXPECT_EQ(batch.tokens, reader_.read(k, pieces_).tokens);
  }
}

TEST_F(PrefetchTest, AnErrorComesAfterTheWindowsBeforeIt) {
  const auto order = [](int64_t k) { return k < 3 ? k : int64_t{100}; };
  Prefetcher prefetcher(reader_, pieces_, order, 0, 8);
  std::this_thread::sleep_for(std::chrono::milliseconds(50));  // the error is there already
  for (int64_t k = 0; k < 3; ++k) EXPECT_EQ(prefetcher.next().window.index, k);
  expect_error([&] { (void)prefetcher.next(); }, {"window 100"});
  expect_error([&] { (void)prefetcher.next(); }, {"window 100"});
}

TEST_F(PrefetchTest, CountsTheTimeSpentWaiting) {
  const auto slow = [](int64_t k) {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    return k;
  };
  Prefetcher prefetcher(reader_, pieces_, slow, 0, 1);
  (void)prefetcher.next();
  (void)prefetcher.next();
  EXPECT_GE(prefetcher.waited(), std::chrono::milliseconds(20));
}

TEST_F(PrefetchTest, CanBeLeftAtAnyTime) {
  for (int i = 0; i < 50; ++i) {
    Prefetcher prefetcher(
        reader_, pieces_, [](int64_t k) { return k % 100; }, 0, 4);
    if (i % 2 == 0) (void)prefetcher.next();
  }
}

}  // namespace

}  // namespace ringlet::test
