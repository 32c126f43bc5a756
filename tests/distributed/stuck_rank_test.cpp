// A rank that neither answers nor moves is named with its place in time; one that moves, or waits, is not.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "tests/distributed/rank_outcome.h"

namespace ringlet::test {
namespace {

using namespace std::chrono_literals;
using testing::HasSubstr;
using Clock = std::chrono::steady_clock;

/// What a stuck thread touches is shared with it, because the thread outlives run_ranks.
struct Stuck {
  std::atomic<bool> release{false}, ended{false};
};

TEST(StuckRankTest, StuckRankIsNamedWithItsPlaceInTime) {
  for (void (*call)(Comm&) : {shift, all_reduce}) {
    const auto stuck = std::make_shared<Stuck>();
    const auto main = [stuck, call](Comm& comm, Trace& trace) {
      call(comm);
      trace.enter_step(7, "forward");
      trace.enter_layer(comm.rank());
      while (comm.rank() != 2) call(comm);
      while (!stuck->release) std::this_thread::sleep_for(1ms);
      stuck->ended = true;
    };
    const auto start = Clock::now();
    const std::string message = outcome({4, 150ms}, main);
    EXPECT_LT(Clock::now() - start, 150ms + 2s);
    EXPECT_THAT(message, HasSubstr("no answer for 0.15 s from rank 2 (step 7, forward, layer 2)"));
    EXPECT_THAT(message, HasSubstr("raise the timeout"));
    EXPECT_TRUE(ranks_were_left_behind());  // of this process: ctest gives each test its own
    stuck->release = true;
    while (!stuck->ended) std::this_thread::sleep_for(1ms);
  }
}

/// For longer than the timeout: work in small bits, each with a sign of life.
void work_visibly(Trace& trace) {
  for (int hop = 0; hop < 30; ++hop) {
    trace.enter_hop(hop);
    std::this_thread::sleep_for(50ms);
  }
}
constexpr auto kShorterThanTheWork = 1000ms;

TEST(StuckRankTest, RankThatIsSeenToMoveIsWaitedFor) {
  for (const auto& call : {std::function(shift), std::function([](Comm& comm) { comm.barrier(); })}) {
    const auto main = [call](Comm& comm, Trace& trace) {
      if (comm.rank() == 1) work_visibly(trace);
      call(comm);
    };
    EXPECT_EQ(outcome({3, kShorterThanTheWork}, main), "nothing");
  }
}

// Rank 2 waits for rank 0, which waits for rank 1 and then works a little: its wait was no silence.
TEST(StuckRankTest, RankThatHasWaitedForLongIsNotTakenForStuck) {
  const auto main = [](Comm& comm, Trace& trace) {
    std::vector<float> values(10);
    const Message zero{0, view(values)}, one{1, view(values)}, two{2, view(values)};
    if (comm.rank() == 1) {
      work_visibly(trace);
      comm.exchange({&zero, 1}, {}, {}).wait();
    } else if (comm.rank() == 2) {
      comm.exchange({}, {&zero, 1}, {}).wait();
    } else {
      comm.exchange({}, {&one, 1}, {}).wait();
      std::this_thread::sleep_for(700ms);
      comm.exchange({&two, 1}, {}, {}).wait();
    }
  };
  EXPECT_EQ(outcome({3, kShorterThanTheWork}, main), "nothing");
}

TEST(StuckRankTest, OnlyTheRankThatDoesNotMoveIsNamed) {
  const auto stuck = std::make_shared<Stuck>();
  const auto main = [stuck](Comm& comm, Trace& trace) {
    trace.enter_step(7, "forward");
    if (comm.rank() == 1) {
      while (!stuck->release) std::this_thread::sleep_for(1ms);
      stuck->ended = true;
      return;
    }
    while (comm.rank() == 2) {  // until it hears of the failure
      work_visibly(trace);
      comm.exchange({}, {}, {});
    }
    comm.barrier();
  };
  const std::string message = outcome({3, kShorterThanTheWork}, main);
  EXPECT_THAT(message, HasSubstr("no answer for 1 s from rank 1 (step 7, forward); rank 0 "));
  stuck->release = true;
  while (!stuck->ended) std::this_thread::sleep_for(1ms);
}

TEST(StuckRankTest, RankThatStopsMovingIsNamedInTime) {
  const auto stuck = std::make_shared<Stuck>();
  Clock::time_point stopped;
  const auto main = [stuck, &stopped](Comm& comm, Trace& trace) {
    if (comm.rank() == 0) return comm.barrier();
    work_visibly(trace);
    stopped = Clock::now();
    trace.enter_step(9, "checkpoint");
    while (!stuck->release) std::this_thread::sleep_for(1ms);
    stuck->ended = true;
  };
  const std::string message = outcome({2, kShorterThanTheWork}, main);
  EXPECT_LT(Clock::now() - stopped, kShorterThanTheWork + 2s);
  EXPECT_THAT(message, HasSubstr("no answer for 1 s from rank 1 (step 9, checkpoint)"));
  stuck->release = true;
  while (!stuck->ended) std::this_thread::sleep_for(1ms);
}

TEST(StuckRankTest, DeadlockNamesAllRanksWithTheirPlaces) {
  const auto main = [](Comm& comm, Trace& trace) {
    trace.enter_step(1, comm.rank() == 0 ? "forward" : "backward");
    std::vector<float> values(10);
    const Message from_other{1 - comm.rank(), view(values)};
    comm.exchange({}, {&from_other, 1}, {}).wait();
  };
  EXPECT_THAT(outcome({2, 150ms}, main),
              HasSubstr("deadlock: no message for 0.15 s, and every rank waits: "
                        "rank 0 (step 1, forward), rank 1 (step 1, backward)"));
}

}  // namespace
}  // namespace ringlet::test
