// The threads Comm leaves all moving and summing to the RankMemory that it is given.
#include "kernels/comm/rank_memory.h"

#include <gtest/gtest.h>

#include <atomic>
#include <memory>
#include <vector>

#include "kernels/comm/threads.h"
#include "tests/distributed/vector_view.h"

namespace ringlet::test {
namespace {

constexpr int kRanks = 3;

/// Counts, and does as the host does.
class CountingMemory : public RankMemory {
 public:
  void copy(const Tensor& from, const Tensor& to, const std::atomic<bool>& abandoned) override {
    ++copies;
    host_->copy(from, to, abandoned);
  }
  void sum(std::span<const Tensor> inputs, std::span<const Tensor> outputs,
           const std::atomic<bool>& abandoned) override {
    ++sums;
    summed_tensors += static_cast<int>(inputs.size());
    host_->sum(inputs, outputs, abandoned);
  }

  std::atomic<int> copies{0}, sums{0}, summed_tensors{0};

 private:
  std::unique_ptr<RankMemory> host_ = make_host_memory();
};

void run_with(CountingMemory& memory, const std::function<void(Comm&)>& main) {
  run_ranks({.ranks = kRanks, .memory = &memory}, [&](Comm& world, Trace&) { main(world); });
}

TEST(RankMemory, SumsOfAllReduceAreOneCall) {
  CountingMemory memory;
  run_with(memory, [](Comm& world) {
    std::vector<float> values{1.0f, float(world.rank())};
    world.all_reduce(view(values), {}).wait();
    EXPECT_EQ(values, (std::vector<float>{3.0f, 3.0f}));
  });
  EXPECT_EQ(memory.sums, 1);
  EXPECT_EQ(memory.summed_tensors, kRanks);
  EXPECT_EQ(memory.copies, 0);
}

TEST(RankMemory, SumsOfReduceScatterAreOnePerShard) {
  CountingMemory memory;
  run_with(memory, [](Comm& world) {
    std::vector<double> values{1, 2, 3}, shard{0};
    world.reduce_scatter(view(values), view(shard), {}).wait();
    EXPECT_EQ(shard[0], 3.0 * (world.rank() + 1));
  });
  EXPECT_EQ(memory.sums, kRanks);
  EXPECT_EQ(memory.summed_tensors, kRanks * kRanks);
}

TEST(RankMemory, CopiesEveryMessage) {
  CountingMemory memory;
  run_with(memory, [](Comm& ring) {
    std::vector<float> sent{float(ring.rank())}, received{-1.0f};
    const int next = (ring.rank() + 1) % kRanks, previous = (ring.rank() + kRanks - 1) % kRanks;
    const Message send{next, view(sent)}, receive{previous, view(received)};
    ring.exchange({&send, 1}, {&receive, 1}, {}).wait();
    EXPECT_EQ(received[0], float(previous));
  });
  EXPECT_EQ(memory.copies, kRanks);
}

/// Is reached when it is told to.
class Gate final : public Timeline {
 public:
  bool reached(int64_t) const override { return open; }
  void wait(int64_t) override { FAIL() << "the world waits for nobody's timeline"; }
  std::atomic<bool> open{false};
};

/// Takes two copies at once. Once armed, the next copy opens the gate: between two searches for what may
/// start, so that none sees it open for some only.
class PairingMemory final : public CountingMemory {
 public:
  explicit PairingMemory(Gate& gate) : gate_(gate) {}
  int copies_at_once() const override { return 2; }
  void copy(const Tensor& from, const Tensor& to, const std::atomic<bool>& abandoned) override {
    if (armed) gate_.open = true;
    CountingMemory::copy(from, to, abandoned);
  }
  void copy_all(std::span<const Copy> pair, const std::atomic<bool>& abandoned) override {
    ++pairs;
    RankMemory::copy_all(pair, abandoned);
  }
  std::atomic<bool> armed{false};
  std::atomic<int> pairs{0};

 private:
  Gate& gate_;
};

TEST(RankMemory, MessagesThatMayStartAreCopiedTogether) {
  Gate gate;
  PairingMemory memory(gate);
  run_ranks({.ranks = 2, .memory = &memory}, [&](Comm& world, Trace&) {
    const int peer = 1 - world.rank();
    std::vector<std::vector<float>> sent{{1.0f}, {2.0f}, {3.0f}}, received{{0.0f}, {0.0f}, {0.0f}};
    std::vector<Message> sends, receives;
    for (size_t i = 0; i < 3; ++i) {
      sends.push_back({peer, view(sent[i])});
      receives.push_back({peer, view(received[i])});
    }
    // Apart from the world, whose events would stand in line behind the gate.
    const std::unique_ptr<Comm> gated = world.split(0);
    const Event all_three = gated->exchange(sends, receives, {&gate, 1});
    world.barrier();
    memory.armed = true;
    std::vector<float> opener{4.0f};
    const Message message{peer, view(opener)};
    const std::span<const Message> one(&message, 1), none;
    const bool is_sender = world.rank() == 0;
    world.exchange(is_sender ? one : none, is_sender ? none : one, {}).wait();
    all_three.wait();
    EXPECT_EQ(received, sent);
  });
  EXPECT_EQ(memory.pairs, 3);
}

TEST(RankMemory, ServesARankThatIsAlone) {
  CountingMemory memory;
  run_ranks({.memory = &memory}, [](Comm& world, Trace&) {
    std::vector<float> values{1.0f, 2.0f}, shard(2);
    world.reduce_scatter(view(values), view(shard), {}).wait();
    EXPECT_EQ(shard, values);
  });
  EXPECT_EQ(memory.sums, 1);
}

TEST(HostMemory, AnOutputMayBeAnInput) {
  std::vector<double> a(10'000, 1.0), b(10'000, 2.0), c(10'000, 0.0);
  const Tensor inputs[] = {view(a), view(b)}, outputs[] = {view(b), view(c), view(a)};
  make_host_memory()->sum(inputs, outputs, std::atomic<bool>(false));
  const std::vector<double> expected(10'000, 3.0);
  EXPECT_EQ(a, expected);
  EXPECT_EQ(b, expected);
  EXPECT_EQ(c, expected);
}

TEST(HostMemory, GivesUpWhenAbandoned) {
  std::vector<float> from(100, 1.0f), to(100, 0.0f);
  const std::atomic<bool> abandoned(true);
  make_host_memory()->copy(view(from), view(to), abandoned);
  EXPECT_EQ(to, std::vector<float>(100, 0.0f));
}

}  // namespace
}  // namespace ringlet::test
