// Collectives that are made of a message library's calls give the bits of the threads Comm, and order and group their
// calls alike on all ranks. The library's double moves the data over threads.
#include "kernels/comm/rank_order.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "kernels/comm/forwarding_comm.h"
#include "kernels/comm/rank_memory.h"
#include "kernels/comm/threads.h"
#include "kernels/random.h"
#include "tests/distributed/run_comm.h"
#include "tests/distributed/vector_view.h"

namespace ringlet::test {
namespace {

/// Behaves as NCCL does: a group travels at its end, messages of two ranks match in order, all else stands
/// outside of groups.
class QueueOverThreads final : public MessageQueue {
 public:
  explicit QueueOverThreads(Comm& comm) : comm_(comm) {}

  void start_group() override {
    CHECK(!in_group_, "groups do not nest");
    in_group_ = true;
  }
  void end_group() override {
    CHECK(in_group_ && sends_.size() + receives_.size() > 0, "a group without messages");
    in_group_ = false;
    ++groups;
    messages += int(sends_.size() + receives_.size());
    comm_.exchange(sends_, receives_, {}).wait();
    sends_.clear();
    receives_.clear();
  }
  void send(const Tensor& tensor, int peer) override { add(sends_, tensor, peer); }
  void receive(const Tensor& tensor, int peer) override { add(receives_, tensor, peer); }
  void all_gather(const Tensor& shard, const Tensor& values) override {
    CHECK(!in_group_ && shard.size() > 0, "all_gather of ", shard.size(), " values");
    ++gathers;
    comm_.all_gather(shard, values, {}).wait();
  }
  void sum(std::span<const Tensor> inputs, const Tensor& output) override {
    CHECK(!in_group_ && inputs.size() <= kMostInputs, inputs.size(), " inputs");
    for (const Tensor& input : inputs) CHECK(input.size() == output.size(), "unequal inputs");
    memory_->sum(inputs, {&output, 1}, abandoned_);
  }

  int groups = 0, messages = 0, gathers = 0;

 private:
  void add(std::vector<Message>& messages_of_group, const Tensor& tensor, int peer) const {
    CHECK(in_group_ && tensor.size() > 0, "message of ", tensor.size(), " values");
    messages_of_group.push_back({peer, tensor});
  }

  Comm& comm_;
  const std::unique_ptr<RankMemory> memory_ = make_host_memory();
  const std::atomic<bool> abandoned_{false};
  std::vector<Message> sends_, receives_;
  bool in_group_ = false;
};

struct Rank {
  Rank(Comm& comm, int64_t scratch_bytes)
      : scratch(scratch_bytes), queue(comm), order(queue, comm.rank(), comm.size(), scratch) {}
  std::vector<std::byte> scratch;
  QueueOverThreads queue;
  RankOrder order;
};

/// Numbers that make the order of a sum show in its bits.
template <class T>
std::vector<T> random_values(int rank, int64_t count) {
  const CounterRandom random(11, uint64_t(rank));
  std::vector<T> values(count);
  for (int64_t i = 0; i < count; ++i) values[i] = T((random.uniform(i) - 0.5) * double(i % 7 + 1));
  return values;
}

class RankOrderTest : public testing::TestWithParam<int> {
 protected:
  const int ranks_ = GetParam();
  /// The least that is legal, one that cuts blocks at odd places, one that takes all at once.
  std::vector<int64_t> scratch_sizes() const { return {ranks_ * 64, ranks_ * 1008 + 24, ranks_ * 1'000'000}; }
};
INSTANTIATE_TEST_SUITE_P(Ranks, RankOrderTest, testing::Values(1, 2, 3, 4, 5, 8));

template <class T>
void expect_sums_of_threads(Comm& comm, int64_t scratch_bytes, int64_t size) {
  Rank rank(comm, scratch_bytes);
  std::vector<T> expected = random_values<T>(comm.rank(), size), actual = expected;
  comm.all_reduce(view(expected), {}).wait();
  rank.order.all_reduce(view(actual));
  EXPECT_EQ(actual, expected) << size << " values, scratch of " << scratch_bytes;
}

TEST_P(RankOrderTest, AllReduceGivesTheBitsOfThreads) {
  run(ranks_, [&](Comm& comm) {
    for (const int64_t scratch : scratch_sizes()) {
      for (const int64_t size : {0, 1, 7, 1000, 4099}) {
        expect_sums_of_threads<float>(comm, scratch, size);
        expect_sums_of_threads<double>(comm, scratch, size);
      }
    }
    // So large that each rank sums its part, with a rest that belongs to none.
    expect_sums_of_threads<float>(comm, ranks_ * 4000, 40'003);
    expect_sums_of_threads<double>(comm, ranks_ * 4000, 20'001);
  });
}

TEST_P(RankOrderTest, ReduceScatterGivesTheBitsOfThreads) {
  run(ranks_, [&](Comm& comm) {
    for (const int64_t scratch : scratch_sizes()) {
      for (const int64_t size : {0, 1, 7, 1000, 4099}) {
        Rank rank(comm, scratch);
        const std::vector<float> values = random_values<float>(comm.rank(), size * ranks_);
        std::vector<float> inputs = values, expected(size), actual(size);
        comm.reduce_scatter(view(inputs), view(expected), {}).wait();
        rank.order.reduce_scatter(view(inputs), view(actual));
        EXPECT_EQ(actual, expected);
        EXPECT_EQ(inputs, values);
      }
    }
  });
}

TEST_P(RankOrderTest, ReduceScatterIntoItsOwnPartLeavesTheRest) {
  constexpr int64_t kSize = 300;
  run(ranks_, [&](Comm& comm) {
    Rank rank(comm, ranks_ * 400);
    std::vector<float> expected = random_values<float>(comm.rank(), kSize * ranks_), actual = expected;
    comm.reduce_scatter(view(expected), view(expected).slice(comm.rank() * kSize, kSize), {}).wait();
    rank.order.reduce_scatter(view(actual), view(actual).slice(comm.rank() * kSize, kSize));
    EXPECT_EQ(actual, expected);
  });
}

TEST(RankOrder, MoreRanksThanOneSumTakes) {
  run(131, [&](Comm& comm) {
    expect_sums_of_threads<float>(comm, 131 * 64, 37);
    Rank rank(comm, 131 * 64);
    std::vector<float> values = random_values<float>(comm.rank(), 131 * 20), expected(20), actual(20);
    comm.reduce_scatter(view(values), view(expected), {}).wait();
    rank.order.reduce_scatter(view(values), view(actual));
    EXPECT_EQ(actual, expected);
  });
}

// What a hop of the ring's backward pass sends: keys and values one way, with their gradients; pieces may be empty.
TEST_P(RankOrderTest, AHopOfTheRingIsOneGroup) {
  run(ranks_, [&](Comm& ring) {
    Rank rank(ring, ranks_ * 64);
    const int next = (ring.rank() + 1) % ranks_, previous = (ring.rank() + ranks_ - 1) % ranks_;
    for (int hop = 0; hop < ranks_; ++hop) {
      std::vector<float> kv = random_values<float>(ring.rank(), 100 + hop), kv_in(kv.size());
      std::vector<float> dkv = random_values<float>(ring.rank() + 50, 30), dkv_in(dkv.size()), nothing;
      const Message sends[] = {{next, view(kv)}, {next, view(nothing)}, {next, view(dkv)}};
      const Message receives[] = {{previous, view(kv_in)}, {previous, view(nothing)}, {previous, view(dkv_in)}};
      rank.order.exchange(sends, receives);
      EXPECT_EQ(kv_in, random_values<float>(previous, 100 + hop));
      EXPECT_EQ(dkv_in, random_values<float>(previous + 50, 30));
    }
    EXPECT_EQ(rank.queue.groups, ranks_);
    EXPECT_EQ(rank.queue.messages, ranks_ * 4);
  });
}

TEST(RankOrder, AnExchangeOfNothingMakesNoCall) {
  run(2, [&](Comm& comm) {
    Rank rank(comm, 128);
    std::vector<float> nothing;
    const Message message{1 - comm.rank(), view(nothing)};
    rank.order.exchange({&message, 1}, {&message, 1});
    EXPECT_EQ(rank.queue.groups, 0);
  });
}

TEST(RankOrder, LargeSumsTravelOnceThere) {
  run(4, [&](Comm& comm) {
    Rank rank(comm, 4'000'000);
    std::vector<float> values = random_values<float>(comm.rank(), 400'000);
    rank.order.all_reduce(view(values));
    EXPECT_EQ(rank.queue.groups, 1);
    EXPECT_EQ(rank.queue.messages, 6);
    EXPECT_EQ(rank.queue.gathers, 1);
  });
}

}  // namespace
}  // namespace ringlet::test
