// Every operation of the threads Comm against a plain loop, on any number of ranks.
#include "kernels/comm.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

#include "kernels/comm/emulated_link.h"
#include "kernels/comm/threads.h"
#include "kernels/random.h"
#include "tests/distributed/run_comm.h"
#include "tests/distributed/vector_view.h"

namespace ringlet::test {
namespace {

using namespace std::chrono_literals;

/// What a rank gives to an operation: numbers that make the order of a sum show in its bits.
template <class T = float>
std::vector<T> input(int rank, int64_t count, uint64_t stream = 0) {
  const CounterRandom random(stream, uint64_t(rank));
  std::vector<T> values(count);
  for (int64_t i = 0; i < count; ++i) {
    values[i] = T((random.uniform(i) - 0.5) * double(i % 7 + 1));
  }
  return values;
}

/// ((rank 0 + rank 1) + rank 2) + ...
template <class T = float>
std::vector<T> sum_in_rank_order(const std::vector<int>& ranks, int64_t count,
                                 uint64_t stream = 0) {
  std::vector<T> sum = input<T>(ranks[0], count, stream);
  for (size_t r = 1; r < ranks.size(); ++r) {
    const std::vector<T> values = input<T>(ranks[r], count, stream);
    for (int64_t i = 0; i < count; ++i) sum[i] += values[i];
  }
  return sum;
}

std::vector<int> ranks_up_to(int size) {
  std::vector<int> ranks(size);
  for (int rank = 0; rank < size; ++rank) ranks[rank] = rank;
  return ranks;
}

template <class T>
std::vector<T> part(const std::vector<T>& values, int64_t first, int64_t count) {
  return {values.begin() + first, values.begin() + first + count};
}

constexpr int64_t kSizes[] = {1, 7, 1000, 4097, 12289};

class CommTest : public testing::TestWithParam<int> {
 protected:
  const int ranks_ = GetParam();
};

INSTANTIATE_TEST_SUITE_P(Ranks, CommTest, testing::Values(1, 2, 3, 4, 5, 8, 16));

TEST_P(CommTest, ShiftGoesRoundTheRing) {
  run(ranks_, [&](Comm& ring) {
    const int next = (ring.rank() + 1) % ranks_, previous = (ring.rank() + ranks_ - 1) % ranks_;
    for (const int64_t size : kSizes) {
      std::vector<float> sent = input(ring.rank(), size), received(size, kPoison);
      const Message send{next, view(sent)}, receive{previous, view(received)};
      ring.exchange({&send, 1}, {&receive, 1}, {}).wait();
      EXPECT_EQ(received, input(previous, size));
    }
  });
}

TEST_P(CommTest, ExchangeWithAllPeersSkipsEmptyTensors) {
  const auto size_of = [](int from, int to) { return (from * 5 + to * 3) % 4 * 1001; };
  run(ranks_, [&](Comm& comm) {
    std::vector<std::vector<float>> sent, received;
    std::vector<Message> sends, receives;
    for (int peer = 0; peer < ranks_; ++peer) {
      sent.push_back(input(comm.rank(), size_of(comm.rank(), peer), peer));
      received.emplace_back(size_of(peer, comm.rank()), kPoison);
    }
    for (int peer = 0; peer < ranks_; ++peer) {
      sends.push_back({peer, view(sent[peer])});
      receives.push_back({peer, view(received[peer])});
    }
    comm.exchange(sends, receives, {}).wait();
    for (int peer = 0; peer < ranks_; ++peer) {
      EXPECT_EQ(received[peer], input(peer, size_of(peer, comm.rank()), comm.rank()));
    }
  });
}

TEST_P(CommTest, AllReduceSumsInRankOrder) {
  for (const int64_t size : kSizes) {
    const std::vector<float> sum = sum_in_rank_order(ranks_up_to(ranks_), size);
    const std::vector<double> sum_in_double = sum_in_rank_order<double>(ranks_up_to(ranks_), size);
    run(ranks_, [&](Comm& comm) {
      std::vector<float> values = input(comm.rank(), size);
      std::vector<double> doubles = input<double>(comm.rank(), size);
      comm.all_reduce(view(values), {});
      comm.all_reduce(view(doubles), {}).wait();
      EXPECT_EQ(values, sum);
      EXPECT_EQ(doubles, sum_in_double);
    });
  }
}

TEST_P(CommTest, ReduceScatterGivesEachRankItsPart) {
  for (const int64_t size : kSizes) {
    const std::vector<float> sum = sum_in_rank_order(ranks_up_to(ranks_), ranks_ * size);
    run(ranks_, [&](Comm& comm) {
      const std::vector<float> own = input(comm.rank(), ranks_ * size);
      const std::vector<float> expected = part(sum, comm.rank() * size, size);
      std::vector<float> values = own, shard(size, kPoison);
      comm.reduce_scatter(view(values), view(shard), {}).wait();
      EXPECT_EQ(shard, expected);
      EXPECT_EQ(values, own);

      const Tensor alias = view(values).slice(comm.rank() * size, size);
      comm.reduce_scatter(view(values), alias, {}).wait();
      std::vector<float> all = own;
      std::ranges::copy(expected, all.begin() + comm.rank() * size);
      EXPECT_EQ(values, all) << "in place";
    });
  }
}

TEST_P(CommTest, AllGatherPutsShardsInRankOrder) {
  for (const int64_t size : kSizes) {
    std::vector<float> expected;
    for (int rank = 0; rank < ranks_; ++rank) {
      std::ranges::copy(input(rank, size), std::back_inserter(expected));
    }
    run(ranks_, [&](Comm& comm) {
      std::vector<float> shard = input(comm.rank(), size);
      std::vector<float> values(ranks_ * size, kPoison);
      comm.all_gather(view(shard), view(values), {}).wait();
      EXPECT_EQ(values, expected);

      std::ranges::fill(values, kPoison);
      std::ranges::copy(shard, values.begin() + comm.rank() * size);
      comm.all_gather(view(values).slice(comm.rank() * size, size), view(values), {}).wait();
      EXPECT_EQ(values, expected) << "in place";
    });
  }
}

TEST_P(CommTest, BroadcastCopiesTheRoot) {
  run(ranks_, [&](Comm& comm) {
    for (int root = 0; root < ranks_; ++root) {
      std::vector<float> values(777, kPoison);
      if (comm.rank() == root) values = input(root, 777);
      comm.broadcast(view(values), root, {}).wait();
      EXPECT_EQ(values, input(root, 777));
    }
  });
}

TEST_P(CommTest, BarrierHoldsAllUntilTheLastHasCome) {
  std::atomic<int> arrived{0};
  run(ranks_, [&](Comm& comm) {
    for (int round = 1; round <= 20; ++round) {
      if (comm.rank() == round % ranks_) std::this_thread::sleep_for(1ms);
      ++arrived;
      comm.barrier();
      EXPECT_GE(arrived, round * ranks_);
      comm.barrier();
    }
  });
}

TEST_P(CommTest, SplitsKeepRankOrderAndTravelAtTheSameTime) {
  run(ranks_, [&](Comm& world) {
    const int color = world.rank() % 2;
    std::vector<int> members;
    for (int rank = color; rank < ranks_; rank += 2) members.push_back(rank);
    std::vector<float> small = input(world.rank(), 501, 1), large = input(world.rank(), 9001, 2);
    const std::unique_ptr<Comm> half = world.split(color);
    const std::unique_ptr<Comm> alone = world.split(world.rank());
    ASSERT_EQ(half->size(), int(members.size()));
    ASSERT_EQ(members[half->rank()], world.rank());
    ASSERT_EQ(alone->size(), 1);

    const Event in_world = world.all_reduce(view(large), {});
    const Event in_half = half->all_reduce(view(small), {});
    alone->all_reduce(view(small), in_half).wait();
    in_world.wait();
    EXPECT_EQ(small, sum_in_rank_order(members, 501, 1));
    EXPECT_EQ(large, sum_in_rank_order(ranks_up_to(ranks_), 9001, 2));
  });
}

TEST_P(CommTest, ManyOutstandingExchangesMatchInOrder) {
  constexpr int kCount = 500;
  run(ranks_, [&](Comm& ring) {
    const int next = (ring.rank() + 1) % ranks_, previous = (ring.rank() + ranks_ - 1) % ranks_;
    std::vector<std::vector<float>> sent, received;
    Event last;
    for (int i = 0; i < kCount; ++i) {
      sent.push_back(input(ring.rank(), 1 + i % 50, i));
      received.emplace_back(1 + i % 50, kPoison);
      const Message send{next, view(sent[i])}, receive{previous, view(received[i])};
      last = ring.exchange({&send, 1}, {&receive, 1}, {});
    }
    last.wait();
    for (int i = 0; i < kCount; ++i) EXPECT_EQ(received[i], input(previous, 1 + i % 50, i));
  });
}

// ---- chance ------------------------------------------------------------------------------------

/// One operation of a random plan that all ranks know. It runs in the world or in the group of the
/// ranks with the same parity.
struct RandomStep {
  int64_t kind, size;
  bool in_half;
  int shift;

  RandomStep(uint64_t seed, uint64_t index) {
    const CounterRandom random(seed, index);
    kind = int64_t(random.bits(0) % 5);
    size = 1 + int64_t(random.bits(1) % 300);
    in_half = random.bits(2) % 2 == 0;
    shift = int(random.bits(3) % 16);
  }
};

/// The tensors of one step on one rank, and what they must hold in the end.
struct RandomCase {
  std::vector<float> values, result, expected;

  RandomCase(const RandomStep& step, const std::vector<int>& members, int me, uint64_t index) {
    const int64_t ranks = int64_t(members.size()), size = step.size;
    const int64_t count = step.kind == 2 ? ranks * size : size;
    values = input(members[me], count, index);
    result.assign(step.kind == 3 ? ranks * size : size, kPoison);
    if (step.kind == 0) expected = input(source(step, members, me), size, index);
    if (step.kind == 1) expected = sum_in_rank_order(members, size, index);
    if (step.kind == 2) {
      expected = part(sum_in_rank_order(members, count, index), me * size, size);
    }
    if (step.kind == 3) {
      for (const int rank : members) {
        std::ranges::copy(input(rank, size, index), std::back_inserter(expected));
      }
    }
    if (step.kind == 4) expected = input(members[step.shift % ranks], size, index);
  }

  static int source(const RandomStep& step, const std::vector<int>& members, int me) {
    const int ranks = int(members.size());
    return members[(me + ranks - step.shift % ranks) % ranks];
  }

  Event start(const RandomStep& step, Comm& comm) {
    const int ranks = comm.size(), shift = step.shift % ranks;
    const Message send{(comm.rank() + shift) % ranks, view(values)};
    const Message receive{(comm.rank() + ranks - shift) % ranks, view(result)};
    switch (step.kind) {
      case 0: return comm.exchange({&send, 1}, {&receive, 1}, {});
      case 1: return comm.all_reduce(view(values), {});
      case 2: return comm.reduce_scatter(view(values), view(result), {});
      case 3: return comm.all_gather(view(values), view(result), {});
      default: return comm.broadcast(view(values), shift, {});
    }
  }

  void check(const RandomStep& step) const {
    const bool in_place = step.kind == 1 || step.kind == 4;
    EXPECT_EQ(in_place ? values : result, expected) << "kind " << step.kind;
  }
};

TEST_P(CommTest, ThousandsOfRandomOperationsWithRandomDelays) {
  constexpr uint64_t kPlan = 11;
  const int64_t step_count = 6000 / (ranks_ + 2);
  run(ranks_, [&](Comm& world) {
    const std::unique_ptr<Comm> half = world.split(world.rank() % 2);
    std::vector<int> members;
    for (int rank = world.rank() % 2; rank < ranks_; rank += 2) members.push_back(rank);
    const CounterRandom delays(12, uint64_t(world.rank()));
    std::vector<RandomCase> cases;
    std::vector<Event> events;
    cases.reserve(step_count);
    for (int64_t i = 0; i < step_count; ++i) {
      const RandomStep step(kPlan, i);
      Comm& comm = step.in_half ? *half : world;
      cases.emplace_back(step, step.in_half ? members : ranks_up_to(ranks_), comm.rank(), i);
      const uint64_t chance = delays.bits(i) % 100;
      if (chance < 5) std::this_thread::sleep_for(std::chrono::microseconds(chance * 50));
      events.push_back(cases.back().start(step, comm));
      if (chance > 90) events[delays.bits(i + 1) % events.size()].wait();
    }
    for (int64_t i = 0; i < step_count; ++i) {
      events[i].wait();
      cases[i].check(RandomStep(kPlan, i));
    }
  });
}

// Messages, sums and gathers over an emulated link are what they are without it, and are not there before their time.
TEST(EmulatedLinkTest, GivesTheSameAndNotBeforeItsTime) {
  ThreadsOptions options;
  options.ranks = 3;
  run_ranks(options, [&](Comm& all, Trace& trace) {
    EmulatedLink ring(all.split(0), {1e6, 1e-3, "1MB/s,1ms"}, trace);
    std::vector<float> out(1000, float(ring.rank())), in(1000, -1);
    const auto tensor = [](std::vector<float>& values) {
      return make_tensor(reinterpret_cast<std::byte*>(values.data()), Dtype::f32, {std::ssize(values), 1, 1, 1});
    };
    const Message send{(ring.rank() + 1) % 3, tensor(out)}, receive{(ring.rank() + 2) % 3, tensor(in)};
    const auto start = std::chrono::steady_clock::now();
    const Event first = ring.exchange({&send, 1}, {&receive, 1}, {});
    const bool early = first.reached();
    EXPECT_TRUE(!early || std::chrono::steady_clock::now() - start >= std::chrono::milliseconds(5));
    const Event second = ring.exchange({&send, 1}, {&receive, 1}, {});  // after the first, in both directions
    first.wait();
    EXPECT_TRUE(first.reached());
    EXPECT_GE(std::chrono::steady_clock::now() - start, std::chrono::milliseconds(5));
    second.wait();
    EXPECT_GE(std::chrono::steady_clock::now() - start, std::chrono::milliseconds(10));
    EXPECT_EQ(in, std::vector<float>(1000, float((ring.rank() + 2) % 3)));
    const auto sum_start = std::chrono::steady_clock::now();
    ring.all_reduce(tensor(out), {}).wait();
    EXPECT_GE(std::chrono::steady_clock::now() - sum_start, std::chrono::microseconds(7333));  // 2 ms, 2/3 of 8000 B
    EXPECT_EQ(out, std::vector<float>(1000, 3));
    std::vector<float> gathered(3);
    std::vector<float> own{float(10 + ring.rank())};
    ring.all_gather(tensor(own), tensor(gathered), {}).wait();
    EXPECT_EQ(gathered, (std::vector<float>{10, 11, 12}));
    ring.exchange({}, {}, {}).wait();
  });
}

// A rank that waits for a late peer waits for the peer, not for the link; and what was on its way meanwhile is free.
TEST(EmulatedLinkTest, TellsTheLinkFromALatePeer) {
  ThreadsOptions options;
  options.ranks = 2;
  run_ranks(options, [&](Comm& all, Trace& trace) {
    EmulatedLink ring(all.split(0), {1e4, 0, "10kB/s"}, trace);
    std::vector<float> out(500, 1), in(500);  // 0.2 s
    const Message send{1 - ring.rank(), view(out)}, receive{1 - ring.rank(), view(in)};
    if (ring.rank() == 1) std::this_thread::sleep_for(300ms);
    ring.exchange({&send, 1}, {&receive, 1}, {}).wait();
    EXPECT_GT(trace.link_wait(), 0ms);
    EXPECT_LE(trace.link_wait(), 200ms);
    const auto before = trace.link_wait();
    const Event hidden = ring.exchange({&send, 1}, {&receive, 1}, {});
    std::this_thread::sleep_for(250ms);
    hidden.wait();
    EXPECT_EQ(trace.link_wait(), before);
    // One that was late while the link was busy with the message before cost nothing.
    all.barrier();
    ring.exchange({&send, 1}, {&receive, 1}, {});
    if (ring.rank() == 1) std::this_thread::sleep_for(180ms);
    ring.exchange({&send, 1}, {&receive, 1}, {}).wait();
    EXPECT_GT(trace.link_wait() - before, ring.rank() == 0 ? 260ms : 80ms);  // of 400 and 220
    EXPECT_LE(trace.link_wait() - before, 400ms + 1us);
  });
}

TEST(EmulatedLinkTest, ASlowMessageIsNoLostRank) {
  run_ranks({2, std::chrono::milliseconds(150)}, [&](Comm& all, Trace& trace) {
    EmulatedLink ring(all.split(0), {1e4, 0, "10kB/s"}, trace);
    std::vector<float> out(1000, 1), in(1000);
    const auto tensor = [](std::vector<float>& values) {
      return make_tensor(reinterpret_cast<std::byte*>(values.data()), Dtype::f32, {std::ssize(values), 1, 1, 1});
    };
    const Message send{1 - ring.rank(), tensor(out)}, receive{1 - ring.rank(), tensor(in)};
    const Event event = ring.exchange({&send, 1}, {&receive, 1}, {});
    if (ring.rank() == 1) event.wait();  // 0.4 s, while rank 0 waits for this one
    ring.barrier();
    event.wait();
    EXPECT_EQ(in, out);
  });
}

}  // namespace
}  // namespace ringlet::test
