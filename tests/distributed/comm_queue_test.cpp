// Between the ranks and the progress thread: nothing is lost when queues are full, a wait and what it waits for cross, or a
// Comm ends with messages under way.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <memory>
#include <stdexcept>
#include <thread>
#include <vector>

#include "kernels/comm/change_count.h"
#include "kernels/comm/fifo.h"
#include "kernels/comm/threads.h"
#include "tests/distributed/rank_outcome.h"
#include "tests/distributed/run_comm.h"
#include "tests/distributed/vector_view.h"

namespace ringlet::test {
namespace {

using namespace std::chrono_literals;
using threads::ChangeCount;

TEST(ChangeCountTest, WhoLookedBeforeAChangeDoesNotSleep) {
  ChangeCount changes;
  const uint32_t seen = changes.now();
  changes.tell();
  EXPECT_TRUE(changes.sleep(seen, ChangeCount::Clock::now() + 60s));
}

TEST(ChangeCountTest, SleepsUntilItsDeadline) {
  ChangeCount changes;
  const auto start = ChangeCount::Clock::now();
  while (changes.sleep(changes.now(), start + 20ms)) {}
  EXPECT_GE(ChangeCount::Clock::now() - start, 20ms);
  EXPECT_FALSE(changes.sleep(changes.now(), start));
}

TEST(ChangeCountTest, NoChangeIsLostOnAnyNumberOfSleepers) {
  ChangeCount changes;
  std::atomic<int> value{0};
  std::vector<std::thread> sleepers;
  for (int i = 0; i < 3; ++i) {
    sleepers.emplace_back([&] {
      for (int expected = 1; expected <= 2000; ++expected) {
        while (true) {
          const uint32_t seen = changes.now();
          if (value >= expected) break;
          changes.sleep(seen);
        }
      }
    });
  }
  for (int i = 0; i < 2000; ++i) {
    ++value;
    changes.tell();
    if (i % 100 == 0) std::this_thread::sleep_for(100us);  // so that they fall asleep
  }
  for (std::thread& sleeper : sleepers) sleeper.join();
}

TEST(FifoTest, KeepsTheOrderWhileItGrows) {
  threads::Fifo<int> fifo;
  int pushed = 0, popped = 0;
  for (int round = 1; round < 40; ++round) {
    for (int i = 0; i < round; ++i) fifo.push_back(pushed++);
    for (int i = 0; i < round / 2; ++i, ++popped) {
      ASSERT_EQ(fifo.front(), popped);
      fifo.pop_front();
    }
    ASSERT_EQ(fifo.size(), size_t(pushed - popped));
    for (size_t i = 0; i < fifo.size(); ++i) ASSERT_EQ(fifo[i], popped + int(i));
  }
}

TEST(FifoTest, ErasesAnywhereAndKeepsTheOrderOfTheRest) {
  for (const std::vector<size_t>& indices : {std::vector<size_t>{}, {0}, {4}, {0, 1, 2}, {1, 3}, {0, 4}, {0, 1, 2, 3, 4}}) {
    threads::Fifo<int> fifo;
    std::vector<int> expected;
    for (int i = -3; i < 5; ++i) fifo.push_back(i);
    for (int i = 0; i < 3; ++i) fifo.pop_front();  // so that the elements stand round the end of its memory
    for (size_t i = 0; i < 5; ++i) {
      if (std::ranges::find(indices, i) == indices.end()) expected.push_back(int(i));
    }
    fifo.erase(indices);
    fifo.push_back(7);
    expected.push_back(7);
    ASSERT_EQ(fifo.size(), expected.size());
    for (size_t i = 0; i < expected.size(); ++i) EXPECT_EQ(fifo[i], expected[i]);
  }
}

/// The host's memory, each copy of which takes until somebody allows it.
class HeldMemory : public RankMemory {
 public:
  void copy(const Tensor& from, const Tensor& to, const std::atomic<bool>& abandoned) override {
    while (!allowed && !abandoned) std::this_thread::sleep_for(100us);
    host_->copy(from, to, abandoned);
  }
  void sum(std::span<const Tensor> inputs, std::span<const Tensor> outputs,
           const std::atomic<bool>& abandoned) override {
    host_->sum(inputs, outputs, abandoned);
  }
  std::atomic<bool> allowed{false};

 private:
  const std::unique_ptr<RankMemory> host_ = make_host_memory();
};

/// More messages than a queue holds, in one exchange.
struct Flood {
  explicit Flood(int peer, float value) : values(1000, value) {
    for (size_t i = 0; i < values.size(); ++i) {
      values[i] += float(i);
      messages.push_back({peer, make_tensor(reinterpret_cast<std::byte*>(&values[i]), Dtype::f32, {1, 1, 1, 1})});
    }
  }
  std::vector<float> values;
  std::vector<Message> messages;
};

TEST(CommQueueTest, AFullQueueLosesNothing) {
  HeldMemory memory;
  ThreadsOptions options{2, 60s};
  options.memory = &memory;
  run_ranks(options, [&](Comm& comm, Trace&) {
    const int other = 1 - comm.rank();
    Flood sent(other, float(comm.rank())), received(other, kPoison);
    std::thread allow;
    if (comm.rank() == 0) {
      allow = std::thread([&] {
        std::this_thread::sleep_for(20ms);
        memory.allowed = true;
      });
    }
    comm.exchange(sent.messages, received.messages, {}).wait();
    if (allow.joinable()) allow.join();
    for (size_t i = 0; i < received.values.size(); ++i) ASSERT_EQ(received.values[i], float(other) + float(i));
  });
}

TEST(CommQueueTest, AFailureReachesARankWhoseQueueIsFull) {
  HeldMemory memory;
  ThreadsOptions options{3, 60s};
  options.memory = &memory;
  const auto start = std::chrono::steady_clock::now();
  const std::string seen = outcome(options, [&](Comm& comm, Trace&) {
    if (comm.rank() == 2) {
      std::this_thread::sleep_for(20ms);
      throw Error("lost");
    }
    const int other = 1 - comm.rank();
    Flood sent(other, 0), received(other, 0);
    comm.exchange(sent.messages, received.messages, {}).wait();
  });
  EXPECT_THAT(seen, testing::HasSubstr("rank 2: lost"));
  EXPECT_LT(std::chrono::steady_clock::now() - start, 10s);
}

/// Reached when its test says so.
class HeldTimeline : public Timeline {
 public:
  bool reached(int64_t) const override { return is_reached; }
  void wait(int64_t) override {}
  std::atomic<bool> is_reached{false};
};

// A receive that nobody answered is given up with its Comm; a send that comes later must not find it.
TEST(CommQueueTest, WhatWasGivenUpIsNotTouchedByAMessageThatComesLater) {
  HeldTimeline device;
  std::vector<float> given_up(10, kPoison);
  std::atomic<bool> gone{false}, sent{false};
  const std::string seen = outcome({2, 60s}, [&](Comm& world, Trace&) {
    std::vector<float> values(10, 1), sum(10, 1);
    const std::unique_ptr<Comm> other = world.split(0);
    // So that the progress thread has something in hand all the time, and looks at it every few microseconds.
    static_cast<void>(other->all_reduce(view(sum), {&device, 1}));
    if (world.rank() == 1) {
      try {
        const std::unique_ptr<Comm> brief = world.split(0);
        const Message receive{0, view(given_up)};
        brief->exchange({}, {&receive, 1}, {});
        std::this_thread::sleep_for(5ms);
        throw std::runtime_error("what frees the memory of the message");
      } catch (const std::runtime_error&) {
        std::this_thread::sleep_for(5ms);
        gone = true;
      }
      while (!sent) std::this_thread::sleep_for(1ms);
      std::this_thread::sleep_for(20ms);
      throw Error("the end");
    }
    const std::unique_ptr<Comm> brief = world.split(0);
    while (!gone) std::this_thread::sleep_for(1ms);
    const Message send{1, view(values)};
    const Event never = brief->exchange({&send, 1}, {}, {});
    sent = true;
    never.wait();
  });
  EXPECT_THAT(seen, testing::HasSubstr("rank 1: the end"));
  for (const float value : given_up) EXPECT_TRUE(value != value) << value;
}

TEST(CommQueueTest, ThousandsOfShortRunsEnd) {
  for (int i = 0; i < 3000; ++i) {
    run(1 + i % 3, [](Comm& comm) {
      std::vector<float> values(4, 1);
      comm.all_reduce(view(values), {}).wait();
      ASSERT_EQ(values[3], float(comm.size()));
    });
  }
}

}  // namespace
}  // namespace ringlet::test
