// Whatever happens to one rank: all ranks end soon, and the message says which it was and where.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "kernels/comm/threads.h"
#include "tests/distributed/rank_outcome.h"
#include "tests/distributed/vector_view.h"

namespace ringlet::test {
namespace {

using namespace std::chrono_literals;
using testing::HasSubstr;
using Clock = std::chrono::steady_clock;

void reduce_scatter(Comm& comm) {
  std::vector<float> values(size_t(comm.size()) * 5), shard(5);
  comm.reduce_scatter(view(values), view(shard), {}).wait();
}

void all_gather(Comm& comm) {
  std::vector<float> values(size_t(comm.size()) * 5), shard(5);
  comm.all_gather(view(shard), view(values), {}).wait();
}

void broadcast(Comm& comm) {
  std::vector<int32_t> values(9);
  comm.broadcast(view(values), 0, {}).wait();
}

void barrier(Comm& comm) { comm.barrier(); }
void split(Comm& comm) { comm.split(0); }

/// Each operation, as a rank does it and waits for it.
struct NamedOperation {
  const char* name;
  void (*run)(Comm&);
};

class EachOperationTest : public testing::TestWithParam<NamedOperation> {};

INSTANTIATE_TEST_SUITE_P(
    All, EachOperationTest,
    testing::Values(NamedOperation{"exchange", shift}, NamedOperation{"all_reduce", all_reduce},
                    NamedOperation{"reduce_scatter", reduce_scatter},
                    NamedOperation{"all_gather", all_gather}, NamedOperation{"barrier", barrier},
                    NamedOperation{"broadcast", broadcast}, NamedOperation{"split", split}),
    [](const auto& test) { return std::string(test.param.name); });

TEST_P(EachOperationTest, ErrorOfOneRankEndsAllWithItsMessage) {
  std::atomic<int> peers_failed{0};
  Clock::time_point thrown;
  const auto main = [&](Comm& comm, Trace&) {
    GetParam().run(comm);
    if (comm.rank() == 2) {
      std::this_thread::sleep_for(20ms);
      thrown = Clock::now();
      throw Error("the disk is full", "Empty it.");
    }
    try {
      while (true) GetParam().run(comm);
    } catch (const PeerFailed& error) {
      EXPECT_STREQ(error.what(), "rank 2: the disk is full");
      EXPECT_EQ(error.advice, "Empty it.");
      ++peers_failed;
      throw;
    }
  };
  EXPECT_EQ(outcome({5, 60s}, main), "Error: rank 2: the disk is full [Empty it.]");
  EXPECT_LT(Clock::now() - thrown, 2s);
  EXPECT_EQ(peers_failed, 4);
}

TEST_P(EachOperationTest, RankThatReturnsWhileOthersWaitIsNamed) {
  for (const auto delay : {0ms, 20ms}) {  // before and after the others have called
    const auto main = [&](Comm& comm, Trace& trace) {
      GetParam().run(comm);
      if (comm.rank() == 1) return std::this_thread::sleep_for(delay);
      trace.enter_step(3, "backward");
      trace.enter_layer(1);
      trace.enter_hop(2);
      std::this_thread::sleep_for(20ms - delay);
      GetParam().run(comm);
    };
    const auto start = Clock::now();
    EXPECT_THAT(outcome({2, 60s}, main), HasSubstr("rank 1 ended while rank 0 waits for it "
                                                   "(step 3, backward, layer 1, hop 2)"));
    EXPECT_LT(Clock::now() - start, 2s);
  }
}

TEST_P(EachOperationTest, SlowRankWithinTheTimeoutIsNoError) {
  const auto main = [](Comm& comm, Trace&) {
    if (comm.rank() == 1) std::this_thread::sleep_for(100ms);
    GetParam().run(comm);
  };
  EXPECT_EQ(outcome({3, 30s}, main), "nothing");
}

// ---- which error -------------------------------------------------------------------------------

TEST(FailureTest, TypeAndAdviceOfAnErrorAreKept) {
  const auto usage = [](Comm& comm, Trace&) {
    if (comm.rank() == 0) throw UsageError("no such file", "Name another.");
    comm.barrier();
  };
  EXPECT_EQ(outcome({2, 60s}, usage), "UsageError: rank 0: no such file [Name another.]");
  EXPECT_EQ(outcome({1, 60s}, usage), "UsageError: no such file [Name another.]");
}

TEST(FailureTest, ForeignExceptionsAreCarried) {
  const auto memory = [](Comm& comm, Trace&) {
    if (comm.rank() == 1) throw std::bad_alloc();
    comm.barrier();
  };
  EXPECT_THAT(outcome({2, 60s}, memory), HasSubstr("Error: rank 1: out of host memory ["));
  const auto standard = [](Comm&, Trace&) { throw std::out_of_range("far out"); };
  EXPECT_EQ(outcome({1, 60s}, standard), "Error: far out []");
  const auto other = [](Comm&, Trace&) { throw 5; };
  EXPECT_EQ(outcome({1, 60s}, other), "Error: an exception of unknown type []");
}

TEST(FailureTest, FirstErrorIsTheOneThatIsShown) {
  const auto main = [](Comm& comm, Trace&) {
    if (comm.rank() == 3) throw Error("first");
    try {
      comm.barrier();
    } catch (const PeerFailed&) {
      throw Error("second");
    }
  };
  EXPECT_EQ(outcome({6, 60s}, main), "Error: rank 3: first []");
}

TEST(FailureTest, RankThatNeverWaitsLearnsOfAFailureToo) {
  const auto main = [](Comm& comm, Trace&) {
    if (comm.rank() == 1) throw Error("gone");
    while (true) comm.exchange({}, {}, {});
  };
  EXPECT_EQ(outcome({2, 60s}, main), "Error: rank 1: gone []");
}

// ---- what does not fit together ----------------------------------------------------------------

TEST(FailureTest, SendAndReceiveOfDifferentSizesAreNamed) {
  const auto main = [](Comm& comm, Trace&) {
    std::vector<float> values(comm.rank() == 0 ? 10 : 12);
    const Message message{1 - comm.rank(), view(values)};
    if (comm.rank() == 0) comm.exchange({&message, 1}, {}, {}).wait();
    else comm.exchange({}, {&message, 1}, {}).wait();
  };
  EXPECT_THAT(outcome({2, 60s}, main),
              HasSubstr("rank 0 sends 10 f32 values to rank 1, which expects 12 f32 values"));
}

TEST(FailureTest, CollectivesOfDifferentSizesAreNamed) {
  const auto sizes = [](Comm& comm, Trace&) {
    std::vector<float> values(comm.rank() == 2 ? 11 : 10);
    comm.all_reduce(view(values), {}).wait();
  };
  EXPECT_THAT(outcome({4, 60s}, sizes),
              HasSubstr("all_reduce of 10 f32 values on rank 0, of 11 f32 values on rank 2"));
  const auto dtypes = [](Comm& comm, Trace&) {
    std::vector<double> values(10);
    Tensor tensor = view(values);
    if (comm.rank() == 0) tensor.dtype = Dtype::f32;
    comm.all_reduce(tensor, {}).wait();
  };
  EXPECT_THAT(outcome({2, 60s}, dtypes), HasSubstr("10 f32 values on rank 0, of 10 f64 values on"));
  const auto roots = [](Comm& comm, Trace&) {
    std::vector<float> values(10);
    comm.broadcast(view(values), comm.rank(), {}).wait();
  };
  EXPECT_THAT(outcome({2, 60s}, roots),
              HasSubstr("broadcast from root 0 on rank 0, from 1 on rank 1"));
}

TEST(FailureTest, DifferentCollectivesAreNamed) {
  const auto main = [](Comm& comm, Trace&) {
    if (comm.rank() == 1) std::this_thread::sleep_for(20ms);
    comm.rank() == 0 ? comm.barrier() : all_reduce(comm);
  };
  EXPECT_THAT(outcome({2, 60s}, main),
              HasSubstr("rank 1 calls all_reduce where rank 0 calls barrier"));
}

TEST(FailureTest, BadArgumentsAreTheCallersError) {
  const auto fails_with = [](const char* text, const std::function<void(Comm&)>& call) {
    const auto main = [&](Comm& comm, Trace&) { comm.rank() == 1 ? call(comm) : comm.barrier(); };
    const std::string message = outcome({2, 60s}, main);
    EXPECT_THAT(message, HasSubstr("Error: rank 1: "));
    EXPECT_THAT(message, HasSubstr(text));
  };
  std::vector<float> values(9), shard(4);
  std::vector<int32_t> integers(4);
  const Message stranger{2, view(shard)};
  fails_with("peer 2 of 2 ranks", [&](Comm& comm) { comm.exchange({&stranger, 1}, {}, {}); });
  fails_with("9 values, shards of 4 on 2 ranks",
             [&](Comm& comm) { comm.reduce_scatter(view(values), view(shard), {}); });
  fails_with("sum of dtype", [&](Comm& comm) { comm.all_reduce(view(integers), {}); });
  EXPECT_THAT(outcome({0, 60s}, [](Comm&, Trace&) {}), HasSubstr("ranks = 0"));
  fails_with("root -1", [&](Comm& comm) { comm.broadcast(view(values), -1, {}); });
}

// ---- memory that is in flight ------------------------------------------------------------------

TEST(FailureTest, RankThatReturnsWithMessagesInFlightIsNamed) {
  std::vector<float> values(10);
  const auto main = [&](Comm& comm, Trace&) {
    const Message to_last{2, view(values)};
    if (comm.rank() == 0) comm.exchange({&to_last, 1}, {}, {});
    else comm.barrier();
  };
  EXPECT_THAT(outcome({3, 60s}, main),
              HasSubstr("rank 0 ended with messages in flight (step 0, start)"));
}

TEST(FailureTest, CommWaitsForItsMessagesBeforeItDies) {
  const auto main = [](Comm& world, Trace&) {
    std::vector<float> values(100'000, 1.0f);
    {
      const std::unique_ptr<Comm> comm = world.split(0);
      if (world.rank() == 1) std::this_thread::sleep_for(20ms);
      comm->all_reduce(view(values), {});
    }
    EXPECT_EQ(values.back(), 2.0f);
  };
  EXPECT_EQ(outcome({2, 60s}, main), "nothing");
}

// The address sanitizer sees a message that is copied from or to memory that a failure has freed.
TEST(FailureTest, MemoryIsFreeOfMessagesWhenAnErrorFreesIt) {
  for (int round = 0; round < 20; ++round) {
    const auto main = [round](Comm& world, Trace&) {
      std::vector<float> values(1 << 18), others(1 << 18);
      const std::unique_ptr<Comm> comm = world.split(0);
      const Message send{(world.rank() + 1) % 4, view(values)};
      const Message receive{(world.rank() + 3) % 4, view(others)};
      Event last;
      for (int i = 0; i < 10; ++i) {
        last = comm->exchange({&send, 1}, {&receive, 1}, {});
        std::this_thread::sleep_for(std::chrono::microseconds(round * 20));
        if (i == 5 && world.rank() == round % 4) throw Error("lost");
      }
      last.wait();
    };
    EXPECT_THAT(outcome({4, 60s}, main), HasSubstr(": lost"));
  }
}

/// A device that takes its time to answer.
class SlowTimeline : public Timeline {
 public:
  bool reached(int64_t) const override {
    in_use = true;
    std::this_thread::sleep_for(50ms);
    in_use = false;
    return false;
  }
  void wait(int64_t) override {}
  mutable std::atomic<bool> in_use{false};
};

TEST(FailureTest, NobodyEndsWhileTheProgressThreadUsesHisOperation) {
  SlowTimeline slow;
  const auto main = [&](Comm& world, Trace&) {
    std::vector<float> values(10);
    std::unique_ptr<Comm> comm = world.split(world.rank() / 2);
    if (world.rank() == 2) {
      comm.reset();
      while (!slow.in_use) std::this_thread::sleep_for(1ms);
      throw Error("lost");
    }
    try {
      comm->all_reduce(view(values), {&slow, 1}).wait();
    } catch (const PeerFailed&) {
      EXPECT_FALSE(slow.in_use);
      throw;
    }
  };
  EXPECT_EQ(outcome({3, 60s}, main), "Error: rank 2: lost []");
}

TEST(FailureTest, WaitForAMessageThatWasGivenUpEnds) {
  const auto main = [](Comm& world, Trace&) {
    std::vector<float> values(10);
    std::thread queue;  // a device's, which drains before the rank's error is known
    const auto join = [](std::thread* thread) { if (thread->joinable()) thread->join(); };
    const std::unique_ptr<std::thread, decltype(join)> joined(&queue, join);
    const std::unique_ptr<Comm> comm = world.split(0);
    if (world.rank() == 0) return world.barrier();
    const Message from_other{0, view(values)};
    const Event never = comm->exchange({}, {&from_other, 1}, {});
    queue = std::thread([never] { EXPECT_THROW(never.wait(), Error); });
    throw Error("lost");
  };
  EXPECT_EQ(outcome({2, 60s}, main), "Error: rank 1: lost []");
}

/// A device that breaks down when asked.
class BrokenTimeline : public Timeline {
 public:
  bool reached(int64_t) const override { throw Error("the device is lost", "Restart it."); }
  void wait(int64_t) override { throw Error("the device is lost"); }
};

TEST(FailureTest, BrokenDeviceOfOneRankEndsAll) {
  BrokenTimeline broken;
  const auto main = [&](Comm& comm, Trace&) {
    std::vector<float> values(10);
    const Event after = comm.rank() == 1 ? Event{&broken, 1} : Event{};
    comm.all_reduce(view(values), after).wait();
  };
  EXPECT_EQ(outcome({3, 60s}, main), "Error: rank 1: the device is lost [Restart it.]");
}

TEST(FailureTest, TheRankThatKnowsTheCauseIsHeardAlsoWhenAnotherSpeaksFirst) {
  ThreadsOptions options;
  options.ranks = 2;
  const std::string seen = outcome(options, [](Comm& comm, Trace&) {
    if (comm.rank() == 0) throw PeerFailed("see the other rank");
    std::this_thread::sleep_for(50ms);
    throw Error("disk full", "make room");
  });
  EXPECT_THAT(seen, HasSubstr("rank 1: disk full [make room]"));
}

}  // namespace
}  // namespace ringlet::test
