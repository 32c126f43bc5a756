#include "kernels/arena.h"

#include <gtest/gtest.h>

namespace ringlet::test {
namespace {

class ArenaTest : public testing::Test {
 protected:
  alignas(Arena::kAlignment) std::byte memory_[8 * Arena::kAlignment];
  Arena arena_{memory_, sizeof memory_};

  int64_t bytes_of(const char* region) const {
    for (const Arena::Region& one : arena_.regions_at_peak()) {
      if (std::string(one.name) == region) return one.bytes;
    }
    return -1;
  }
};

TEST_F(ArenaTest, TensorsAreAlignedAndDoNotOverlap) {
  const Tensor first = arena_.allocate("a", Dtype::f32, {3, 5, 1, 1});
  const Tensor second = arena_.allocate("a", Dtype::i64, {33, 1, 1, 1});
  const Tensor third = arena_.allocate("b", Dtype::f32, {1, 1, 1, 1});
  EXPECT_EQ(first.data, memory_);
  EXPECT_EQ(second.data, memory_ + 256);
  EXPECT_EQ(third.data, memory_ + 256 + 512);
  EXPECT_EQ(first.row_stride, 5);
  EXPECT_TRUE(first.contiguous());
  EXPECT_EQ(arena_.used_bytes(), 1024);
}

TEST_F(ArenaTest, RewindGivesTheSameMemoryAgain) {
  arena_.allocate("a", Dtype::f32, {1, 1, 1, 1});
  const Arena::Mark mark = arena_.mark();
  const Tensor first = arena_.allocate("b", Dtype::f32, {64, 1, 1, 1});
  arena_.allocate("c", Dtype::f32, {65, 1, 1, 1});
  arena_.rewind(mark);
  EXPECT_EQ(arena_.used_bytes(), 256);
  EXPECT_EQ(arena_.allocate("d", Dtype::f32, {1, 1, 1, 1}).data, first.data);
}

TEST_F(ArenaTest, ScopesNest) {
  {
    const ArenaScope outer(arena_);
    arena_.allocate("a", Dtype::f32, {1, 1, 1, 1});
    {
      const ArenaScope inner(arena_);
      arena_.allocate("a", Dtype::f32, {1, 1, 1, 1});
    }
    EXPECT_EQ(arena_.used_bytes(), 256);
  }
  EXPECT_EQ(arena_.used_bytes(), 0);
  EXPECT_EQ(arena_.peak_bytes(), 512);
}

TEST_F(ArenaTest, RegionsAreThoseOfTheFullestMomentAndAddUp) {
  arena_.allocate("weights", Dtype::f32, {64, 1, 1, 1});
  {
    const ArenaScope scope(arena_);
    arena_.allocate("ring", Dtype::f32, {128, 1, 1, 1});
    arena_.allocate("weights", Dtype::f32, {64, 1, 1, 1});
  }
  {
    const ArenaScope scope(arena_);
    arena_.allocate("logits", Dtype::f32, {64, 1, 1, 1});
  }
  EXPECT_EQ(arena_.peak_bytes(), 1024);
  EXPECT_EQ(bytes_of("weights"), 512);
  EXPECT_EQ(bytes_of("ring"), 512);
  EXPECT_LE(bytes_of("logits"), 0);
  arena_.reset_peak();
  EXPECT_EQ(arena_.peak_bytes(), 256);
  EXPECT_EQ(bytes_of("weights"), 256);
  EXPECT_EQ(bytes_of("ring"), 0);
}

TEST_F(ArenaTest, WhatDoesNotFitIsAnErrorThatNamesRegionAndBytes) {
  arena_.allocate("weights", Dtype::f32, {64, 1, 1, 1});
  try {
    arena_.allocate("ring inboxes", Dtype::f32, {7 * 64 + 1, 1, 1, 1});
    FAIL() << "nothing was thrown";
  } catch (const Error& error) {
    const std::string cause = error.what();
    EXPECT_NE(cause.find("'ring inboxes' asks for 2048 bytes"), std::string::npos) << cause;
    EXPECT_NE(cause.find("1792 of 2048 are free"), std::string::npos) << cause;
    EXPECT_FALSE(error.advice.empty());
  }
  EXPECT_EQ(arena_.used_bytes(), 256);
  EXPECT_NO_THROW(arena_.allocate("ring inboxes", Dtype::f32, {7 * 64, 1, 1, 1}));
}

TEST_F(ArenaTest, EmptyTensorsArePresentAndCostNothing) {
  const Tensor empty = arena_.allocate("a", Dtype::f32, {0, 5, 1, 1});
  EXPECT_TRUE(empty);
  EXPECT_EQ(arena_.used_bytes(), 0);
  EXPECT_THROW(arena_.allocate("a", Dtype::f32, {-1, 5, 1, 1}), Error);
}

}  // namespace
}  // namespace ringlet::test
