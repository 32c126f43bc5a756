// Tensors in a GPU's memory travel between ranks: threads that share the first GPU, and NCCL's world of one rank.
#include "kernels/comm.h"

#include <gtest/gtest.h>

#include <functional>
#include <thread>
#include <vector>

#include "kernels/comm/threads.h"
#include "kernels/cuda_module.h"
#include "kernels/random.h"
#include "tests/support/module_under_test.h"

namespace ringlet::test {
namespace {

using Floats = std::vector<float>;

constexpr int kRanks = 4;
constexpr int64_t kSizes[] = {1, 7, 4096, 1'000'003};

Floats values_of(int rank, int64_t count) {
  const CounterRandom random(3, uint64_t(rank));
  Floats values(count);
  for (int64_t i = 0; i < count; ++i) values[i] = float((random.uniform(i) - 0.5) * double(i % 7 + 1));
  return values;
}

/// ((rank 0 + rank 1) + rank 2) + ...
Floats sum_in_rank_order(int64_t count) {
  Floats sum = values_of(0, count);
  for (int rank = 1; rank < kRanks; ++rank) {
    const Floats values = values_of(rank, count);
    for (int64_t i = 0; i < count; ++i) sum[i] += values[i];
  }
  return sum;
}

Floats run_of(const Floats& values, int64_t first, int64_t count) {
  return {values.begin() + first, values.begin() + first + count};
}

Tensor host_view(Floats& values) {
  return make_tensor(reinterpret_cast<std::byte*>(values.data()), Dtype::f32, {int64_t(values.size()), 1, 1, 1});
}

/// A rank's GPU and the Comm that is tested.
struct Rank {
  Comm& comm;
  Backend& device;

  Tensor put(const Floats& values) const {
    const Tensor tensor = device.arena().allocate("test", Dtype::f32, {int64_t(values.size()), 1, 1, 1});
    upload<float>(device, values, tensor);
    return tensor;
  }
  Floats get(const Tensor& tensor) const {
    Floats values(tensor.size());
    read<float>(device, tensor, values);
    return values;
  }
};

class CudaCommTest : public testing::Test {
 protected:
  void SetUp() override {
    const CudaModule module = module_under_test();
    if (module.interface == nullptr) GTEST_SKIP() << "no CUDA device: " << module.trouble;
    if (const std::string trouble = module.interface->examine().trouble; !trouble.empty()) {
      GTEST_SKIP() << "no CUDA device: " << trouble;
    }
    interface_ = module.interface;
  }

  void on_threads(const std::function<void(const Rank&)>& main) const {
    const auto memory = interface_->make_rank_memory();
    run_ranks({.ranks = kRanks, .memory = memory.get()}, [&](Comm& world, Trace& trace) {
      const auto device = interface_->make_backend({.device = 0, .arena_bytes = 64 << 20}, trace);
      main({world, *device});
    });
  }

  const CudaInterface* interface_ = nullptr;
};

TEST_F(CudaCommTest, MessagesGoRoundTheRing) {
  on_threads([](const Rank& rank) {
    const int next = (rank.comm.rank() + 1) % kRanks, previous = (rank.comm.rank() + kRanks - 1) % kRanks;
    for (const int64_t size : kSizes) {
      const Tensor sent = rank.put(values_of(rank.comm.rank(), size)), received = rank.put(Floats(size));
      const Message send{next, sent}, receive{previous, received};
      rank.device.wait(rank.comm.exchange({&send, 1}, {&receive, 1}, rank.device.record()));
      EXPECT_EQ(rank.get(received), values_of(previous, size));
    }
  });
}

TEST_F(CudaCommTest, SumsHaveTheHostsBits) {
  on_threads([](const Rank& rank) {
    for (const int64_t size : kSizes) {
      const Tensor values = rank.put(values_of(rank.comm.rank(), size));
      rank.device.wait(rank.comm.all_reduce(values, rank.device.record()));
      EXPECT_EQ(rank.get(values), sum_in_rank_order(size));
    }
  });
}

TEST_F(CudaCommTest, ShardsInPlace) {
  on_threads([](const Rank& rank) {
    for (const int64_t size : kSizes) {
      const int64_t first = rank.comm.rank() * size;
      const Tensor values = rank.put(values_of(rank.comm.rank(), size * kRanks)), own = values.slice(first, size);
      const Event summed = rank.comm.reduce_scatter(values, own, rank.device.record());
      rank.device.wait(summed);
      EXPECT_EQ(rank.get(own), run_of(sum_in_rank_order(size * kRanks), first, size));
      rank.device.wait(rank.comm.all_gather(own, values, rank.device.record()));
      EXPECT_EQ(rank.get(values), sum_in_rank_order(size * kRanks));
    }
  });
}

TEST_F(CudaCommTest, HostAndDeviceMeet) {
  on_threads([](const Rank& rank) {
    Floats host = values_of(rank.comm.rank(), 5000);
    const bool on_host = rank.comm.rank() % 2 == 0;
    const Tensor values = on_host ? host_view(host) : rank.put(host);
    rank.comm.all_reduce(values, rank.device.record()).wait();
    EXPECT_EQ(on_host ? host : rank.get(values), sum_in_rank_order(5000));
    rank.comm.broadcast(values, 1, rank.device.record()).wait();
  });
}

/// NCCL's worlds, where it is installed.
class CudaNcclTest : public CudaCommTest {
 protected:
  void SetUp() override {
    CudaCommTest::SetUp();
    if (IsSkipped()) return;
    try {
      options_.id = interface_->make_nccl_id();
    } catch (const Error& error) {
      GTEST_SKIP() << error.what();
    }
    options_.timeout = std::chrono::seconds(30);
  }

  NcclOptions options_;
};

TEST_F(CudaNcclTest, AProcessHasOneGpuOfItsOwn) {
  const std::vector<CudaDevice> all = interface_->examine().devices;
  const CudaMachine first = interface_->examine_own(0), last = interface_->examine_own(int(all.size()) - 1);
  ASSERT_EQ(first.devices.size(), 1u) << first.trouble;
  EXPECT_EQ(first.devices[0].index, 0);
  EXPECT_EQ(first.devices[0].trouble, "");
  EXPECT_GT(first.devices[0].free_bytes, 0);
  ASSERT_EQ(last.devices.size(), 1u) << last.trouble;
  EXPECT_EQ(last.devices[0].index, all.back().index);
  const CudaMachine beyond = interface_->examine_own(int(all.size()));
  EXPECT_EQ(beyond.trouble.empty(), all.size() == 1) << beyond.trouble;
}

// Rank 1 of 2 does not come.
TEST_F(CudaNcclTest, WhoWaitsForARankThatStaysAwayGivesUp) {
  options_.size = 2;
  options_.timeout = std::chrono::seconds(2);
  std::string told;
  options_.on_failure = [&](const std::string& cause, const std::string&) { told = cause; };
  const auto start = std::chrono::steady_clock::now();
  try {
    interface_->make_nccl_comm(options_);
    ADD_FAILURE() << "a world of two without rank 1";
  } catch (const Error& error) {
    EXPECT_EQ(error.what(), told);
    EXPECT_NE(error.advice, "");
  }
  // As train/nccl_world.h has it: half a minute behind the timeout a run comes back. NCCL needs most of it to give up.
  EXPECT_LT(std::chrono::steady_clock::now() - start, options_.timeout + std::chrono::seconds(30));
}

TEST_F(CudaNcclTest, TwoRanksOnOneGpuAreAnError) {
  options_.size = 2;
  options_.timeout = std::chrono::seconds(20);
  std::string causes[2], advice[2];
  const auto join = [&](int rank) {
    NcclOptions own = options_;
    own.rank = rank;
    try {
      interface_->make_nccl_comm(own);
    } catch (const Error& error) {
      causes[rank] = error.what();
      advice[rank] = error.advice;
    }
  };
  std::thread other(join, 1);
  join(0);
  other.join();
  for (int rank = 0; rank < 2; ++rank) {
    EXPECT_NE(causes[rank].find("GPU"), std::string::npos) << "rank " << rank << ": " << causes[rank];
    EXPECT_NE(advice[rank].find("GPU"), std::string::npos) << "rank " << rank << ": " << advice[rank];
  }
}

TEST_F(CudaNcclTest, ServesAWorldOfOne) {
  Trace trace;
  const auto device = interface_->make_backend({.device = 0, .arena_bytes = 64 << 20}, trace);
  const auto world = interface_->make_nccl_comm(options_);
  const Rank rank{*world, *device};
  world->barrier();
  const Floats values = values_of(0, 1'000'003);
  const Tensor sent = rank.put(values), received = rank.put(Floats(values.size()));
  const Message send{0, sent}, receive{0, received};
  device->wait(world->exchange({&send, 1}, {&receive, 1}, device->record()));
  EXPECT_EQ(rank.get(received), values);
  const Tensor shard = rank.put(Floats(values.size()));
  device->wait(world->reduce_scatter(sent, shard, device->record()));
  EXPECT_EQ(rank.get(shard), values);
  Floats host = values_of(1, 100), gathered(100);
  const Event event = world->all_gather(host_view(host), host_view(gathered), {});
  event.wait();
  EXPECT_EQ(gathered, host);
  const auto part = world->split(3);
  EXPECT_EQ(part->size(), 1);
  part->all_reduce(sent, device->record()).wait();
  part->broadcast(sent, 0, device->record()).wait();
  EXPECT_EQ(rank.get(sent), values);
}

}  // namespace
}  // namespace ringlet::test
