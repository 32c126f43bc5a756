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

#ifndef NDEBUG  // kWatchesFlights

/// A queue of work of which only the address counts.
class AnyTimeline final : public Timeline {
 public:
  bool reached(int64_t) const override { return true; }
  void wait(int64_t) override {}
};

struct FlightTest : ArenaTest {
  AnyTimeline ring, world;

  Tensor allocate(const char* region) { return arena_.allocate(region, Dtype::f32, {64, 1, 1, 1}); }

  void expect_held(Arena::Mark mark, const char* region) {
    const int64_t used_bytes = arena_.used_bytes();
    try {
      arena_.rewind(mark);
      ADD_FAILURE() << "memory in flight was freed";
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find(region), std::string::npos) << error.what();
      EXPECT_NE(error.advice.find("Backend::wait"), std::string::npos) << error.advice;
    }
    EXPECT_EQ(arena_.used_bytes(), used_bytes);
  }
};

TEST_F(FlightTest, MemoryIsHeldUntilItsEventWasWaitedFor) {
  allocate("weights");
  const Arena::Mark mark = arena_.mark();
  const Tensor inbox = allocate("ring inboxes");
  allocate("scratch");
  arena_.hold(inbox.slice(63, 1), {&ring, 4});  // its last bytes are enough
  expect_held(mark, "'ring inboxes'");
  arena_.release({&ring, 3});
  arena_.release({&world, 4});
  arena_.release({});
  expect_held(mark, "'ring inboxes'");
  arena_.rewind(mark + 1);  // "scratch" alone is free to go
  arena_.release({&ring, 4});
  arena_.rewind(mark);
  EXPECT_EQ(arena_.used_bytes(), 256);
}

TEST_F(FlightTest, AnEventReleasesWhatItsTimelineReachedBefore) {
  const Tensor first = allocate("a"), second = allocate("b");
  arena_.hold(first, {&ring, 1});
  arena_.hold(second, {&ring, 2});
  arena_.hold(first, {&world, 9});
  arena_.release({&ring, 2});
  arena_.rewind(1);
  expect_held(0, "'a'");
  arena_.release({&world, 9});
  arena_.rewind(0);
}

TEST_F(FlightTest, NothingIsInFlightOfAnEmptyTensorOrAnEventThatIsAlwaysReached) {
  arena_.hold(allocate("a"), {});
  arena_.hold(allocate("b").slice(64, 0), {&ring, 1});
  arena_.rewind(0);
  EXPECT_EQ(arena_.used_bytes(), 0);
}

TEST_F(FlightTest, TheEndOfAScopeThrowsToo) {
  const auto forget = [&] {
    const ArenaScope scope(arena_);
    arena_.hold(allocate("a"), {&ring, 1});
  };
  EXPECT_THROW(forget(), Error);
}

TEST_F(FlightTest, AnErrorOnItsWayStaysTheFirstAndFreesTheMemory) {
  try {
    const ArenaScope outer(arena_);
    const ArenaScope inner(arena_);
    arena_.hold(allocate("a"), {&ring, 1});
    throw Error("the first");
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(), "the first");
  }
  EXPECT_EQ(arena_.used_bytes(), 0);
  allocate("b");
  EXPECT_NO_THROW(arena_.rewind(0));
}

#endif

}  // namespace
}  // namespace ringlet::test
