// When operations start and end, who sleeps meanwhile, and the Comm of dry runs.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <ctime>
#include <memory>
#include <thread>
#include <vector>

#include "kernels/comm/dry.h"
#include "kernels/comm/threads.h"
#include "tests/distributed/run_comm.h"
#include "tests/distributed/vector_view.h"
#include "tests/support/deferred_backend.h"

namespace ringlet::test {
namespace {

using namespace std::chrono_literals;

void sleep_until(const std::atomic<bool>& flag) {
  while (!flag) std::this_thread::sleep_for(1ms);
}

TEST(CommOrderTest, EventsAreReachedInTheOrderOfTheirStart) {
  std::atomic<bool> looked{false}, second_sent{false};
  run(3, [&](Comm& comm) {
    std::vector<float> late(10, 1), early(10, 2);
    const Message with_late{comm.rank() == 0 ? 1 : 0, view(late)};
    const Message with_early{comm.rank() == 0 ? 2 : 0, view(early)};
    if (comm.rank() == 0) {
      const Event first = comm.exchange({&with_late, 1}, {}, {});
      const Event second = comm.exchange({}, {&with_early, 1}, {});
      const Event nothing = comm.exchange({}, {}, {});
      sleep_until(second_sent);  // although the first cannot travel yet
      EXPECT_FALSE(first.reached() || second.reached() || nothing.reached());
      looked = true;
      nothing.wait();
      EXPECT_TRUE(first.reached() && second.reached());
      EXPECT_EQ(early[9], 3);
    } else if (comm.rank() == 1) {
      sleep_until(looked);
      comm.exchange({}, {&with_late, 1}, {}).wait();
    } else {
      std::ranges::fill(early, 3.0f);
      comm.exchange({&with_early, 1}, {}, {}).wait();
      second_sent = true;
    }
  });
}

/// A device's queue that comes to its points when the test says so.
class ManualTimeline : public Timeline {
 public:
  bool reached(int64_t value) const override { return done_ >= value; }
  void wait(int64_t value) override { done_.wait(value - 1); }
  void reach(int64_t value) { done_ = value; }

 private:
  std::atomic<int64_t> done_{0};
};

TEST(CommOrderTest, OperationsStartAfterTheEventsOfAllRanksAndHoldUpNobodyElse) {
  ManualTimeline devices[2];
  std::atomic<bool> looked{false};
  run(2, [&](Comm& comm) {
    const int me = comm.rank(), other = 1 - me;
    const std::unique_ptr<Comm> second = comm.split(0);
    std::vector<float> values(100, kPoison), quick(100, 1);
    const Event summed = comm.all_reduce(view(values), {&devices[me], 1});
    for (int i = 0; i < 20; ++i) second->all_reduce(view(quick), {}).wait();
    EXPECT_EQ(quick[99], float(1 << 20));
    EXPECT_FALSE(summed.reached());
    std::ranges::fill(values, float(me + 1));
    if (me == 1) sleep_until(looked);
    devices[me].reach(1);
    if (me == 0) {
      std::this_thread::sleep_for(20ms);
      EXPECT_FALSE(summed.reached()) << "rank 1 is not ready";
      looked = true;
    }

    // A chain: the exchange waits for the sum, which is an event of the Comm itself.
    std::vector<float> received(100, kPoison);
    const Message send{other, view(values)}, receive{other, view(received)};
    second->exchange({&send, 1}, {&receive, 1}, summed).wait();
    EXPECT_EQ(received, std::vector<float>(100, 3));
    EXPECT_TRUE(summed.reached());
  });
}

TEST(CommOrderTest, DeviceAndMessagesTakeTurnsWithoutTheHost) {
  run_ranks({3, 20s}, [](Comm& comm, Trace& trace) {
    const std::unique_ptr<Backend> device = make_deferred_backend(1 << 20, trace);
    const Tensor values = device->arena().allocate("test", Dtype::f32, {1000, 1, 1, 1});
    const Tensor sum = device->arena().allocate("test", Dtype::f32, {1000, 1, 1, 1});
    device->fill(0, sum);
    for (int round = 0; round < 50; ++round) {
      device->fill(float(comm.rank() + round), values);
      device->wait(comm.all_reduce(values, device->record()));
      device->add(values, sum);
    }
    std::vector<float> result(1000);
    read<float>(*device, sum, result);
    EXPECT_EQ(result, std::vector<float>(1000, 50 * 3 + 3 * 49 * 50 / 2));
  });
}

// ---- rest --------------------------------------------------------------------------------------

TEST(CommRestTest, NobodyBurnsTimeWhileAllSleep) {
  double seconds = -1;
  run(4, [&](Comm& comm) {
    comm.barrier();
    if (comm.rank() == 0) {
      const std::clock_t start = std::clock();
      std::this_thread::sleep_for(300ms);
      seconds = double(std::clock() - start) / CLOCKS_PER_SEC;
    }
    comm.barrier();  // ranks 1 to 3 wait here all the time
  });
  EXPECT_GE(seconds, 0);
  EXPECT_LT(seconds, 0.03);
}

TEST(CommRestTest, OneRankIsDoneAtOnce) {
  run(1, [&](Comm& comm) {
    std::vector<float> values = {1, 2, 3}, shard(3, kPoison);
    EXPECT_TRUE(comm.reduce_scatter(view(values), view(shard), {}).reached());
    EXPECT_EQ(shard, values);
    EXPECT_TRUE(comm.all_reduce(view(values), {}).reached());
    EXPECT_TRUE(comm.broadcast(view(values), 0, {}).reached());
    EXPECT_EQ(values, shard);
  });
}

TEST(CommRestTest, TraceSaysWhoWaits) {
  Trace* waiting_rank = nullptr;
  run_ranks({2, 20s}, [&](Comm& comm, Trace& trace) {
    if (comm.rank() == 0) waiting_rank = &trace;
    comm.barrier();
    if (comm.rank() == 1) {
      std::this_thread::sleep_for(50ms);
      EXPECT_TRUE(waiting_rank->waiting());
      EXPECT_FALSE(trace.waiting());
    }
    comm.barrier();
    EXPECT_FALSE(trace.waiting());
  });
}

// ---- the dry Comm ------------------------------------------------------------------------------

TEST(DryCommTest, CountsWhatOneRankOfADataParallelRingWorldSends) {
  Traffic traffic;
  DryComm world({5, 8}, traffic), ring({1, 4}, traffic);
  EXPECT_THROW(world.split(0), Error);

  std::byte* const nowhere = nullptr;  // a dry tensor's memory is never touched
  const Tensor kv = make_tensor(nowhere, Dtype::f32, {2, 4, 10, 8});
  const Tensor empty = make_tensor(nowhere, Dtype::f32, {0, 1, 1, 1});
  const Tensor values = make_tensor(nowhere, Dtype::f32, {800, 1, 1, 1});
  const Tensor shard = make_tensor(nowhere, Dtype::f32, {100, 1, 1, 1});
  const Message sends[] = {{2, kv}, {2, empty}}, receives[] = {{0, kv}, {0, empty}};
  EXPECT_TRUE(ring.exchange(sends, receives, {}).reached());
  ring.exchange({&sends[1], 1}, {&receives[1], 1}, {});
  EXPECT_TRUE(world.reduce_scatter(values, shard, {}).reached());
  world.all_gather(shard, values, {});
  world.all_reduce(values, {});
  world.broadcast(values, 5, {});
  world.broadcast(values, 0, {});
  world.barrier();
  EXPECT_EQ(traffic.exchange_bytes, 640 * 4);
  EXPECT_EQ(traffic.exchanges, 1);
  EXPECT_EQ(traffic.reduce_scatter_bytes, 7 * 400);
  EXPECT_EQ(traffic.all_gather_bytes, 7 * 400);
  EXPECT_EQ(traffic.all_reduce_bytes, 2 * 3200 * 7 / 8);
  EXPECT_EQ(traffic.broadcast_bytes, 7 * 3200);
  EXPECT_THROW(ring.reduce_scatter(values, shard, {}), Error);
}

}  // namespace
}  // namespace ringlet::test
