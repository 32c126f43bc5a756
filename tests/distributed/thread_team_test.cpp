// The threads of a rank: each task once, errors come home, and the number of threads does not
// change a bit.
#include "kernels/cpu/thread_team.h"

#include <gtest/gtest.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <numeric>
#include <span>
#include <thread>
#include <vector>

#include "kernels/cpu/attention.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/fma_peak.h"
#include "tests/support/host_tensor.h"
#include "tests/support/training_case.h"

namespace ringlet::test {
namespace {

using cpu::ThreadTeam;

TEST(ThreadTeamTest, RunsEachTaskOnceOnAnyNumberOfThreads) {
  for (const int threads : {1, 2, 3, 16}) {
    ThreadTeam team(threads);
    EXPECT_EQ(team.size(), threads);
    for (const int64_t count : {0, 1, 2, 7, 1000}) {
      std::vector<int> done(size_t(count), 0);
      for (int round = 1; round <= 20; ++round) {
        team.run(count, [&](int64_t task) { ++done[size_t(task)]; });
        EXPECT_EQ(std::accumulate(done.begin(), done.end(), int64_t{0}), round * count);
      }
      for (const int times : done) EXPECT_EQ(times, 20);
    }
  }
}

TEST(ThreadTeamTest, SplitsIntoWholeGrainsThatCoverEverything) {
  ThreadTeam team(3);
  for (const int64_t size : {0, 1, 5, 16, 17, 100}) {
    for (const int64_t grain : {1, 4, 16, 1000}) {
      std::vector<int> covered(size_t(size), 0);
      team.split(size, grain, [&](int64_t first, int64_t count) {
        EXPECT_EQ(first % grain, 0);
        EXPECT_GT(count, 0);
        for (int64_t i = first; i < first + count; ++i) ++covered[size_t(i)];
      });
      EXPECT_EQ(covered, std::vector<int>(size_t(size), 1)) << size << " by " << grain;
    }
  }
}

TEST(ThreadTeamTest, MeasuresThePeakAgainAndAgain) {
  for (const int threads : {1, 2, 5}) {
    ThreadTeam team(threads);
    for (int round = 0; round < 3; ++round) {
      const double peak = cpu::fma_peak_gflops(team);
      EXPECT_TRUE(std::isfinite(peak) && peak > 0) << peak;
    }
  }
}

// Whether or not a helper had to leave its caller's core for a moment; where there is one core it stays.
TEST(ThreadTeamTest, HelpersMayUseTheSameCoresAfterwards) {
  const auto mask = [] {
    cpu_set_t allowed;
    EXPECT_EQ(sched_getaffinity(0, sizeof allowed, &allowed), 0);
    return allowed;
  };
  const cpu_set_t everywhere = mask();
  cpu_set_t here;
  CPU_ZERO(&here);
  CPU_SET(size_t(sched_getcpu()), &here);
  for (const cpu_set_t& allowed : {everywhere, here}) {
    ASSERT_EQ(sched_setaffinity(0, sizeof allowed, &allowed), 0);
    ThreadTeam team(2);
    for (int round = 0; round < 50; ++round) {
      std::this_thread::sleep_for(std::chrono::milliseconds(2));  // they fall asleep
      std::atomic<int> done = 0;
      team.run(6, [&](int64_t) {
        const cpu_set_t now = mask();
        EXPECT_TRUE(CPU_EQUAL(&now, &allowed));
        ++done;
      });
      EXPECT_EQ(done, 6);
    }
  }
  EXPECT_EQ(sched_setaffinity(0, sizeof everywhere, &everywhere), 0);
}

// Each stays on its core, which may be any of those that the caller may use; afterwards the caller may use all of them again.
TEST(ThreadTeamTest, PinsItsThreadsFromACoreOn) {
  cpu_set_t before, after;
  ASSERT_EQ(sched_getaffinity(0, sizeof before, &before), 0);
  std::vector<int> cores;
  for (int core = 0; core < CPU_SETSIZE; ++core) {
    if (CPU_ISSET(size_t(core), &before)) cores.push_back(core);
  }
  for (const int first : {0, 1, int(cores.size()) + 1}) {
    ThreadTeam team(3, nullptr, first);
    std::vector<int> seen(3, -1);
    std::atomic<int> started = 0;
    team.run(3, [&](int64_t task) {
      ++started;  // a task for each thread
      while (started < 3) std::this_thread::sleep_for(std::chrono::milliseconds(1));
      cpu_set_t now;
      if (sched_getaffinity(0, sizeof now, &now) == 0 && CPU_COUNT(&now) == 1) seen[size_t(task)] = sched_getcpu();
    });
    std::vector<int> expected;
    for (int thread = 0; thread < 3; ++thread) expected.push_back(cores[size_t(first + thread) % cores.size()]);
    std::ranges::sort(expected);
    std::ranges::sort(seen);
    EXPECT_EQ(seen, expected);
  }
  ASSERT_EQ(sched_getaffinity(0, sizeof after, &after), 0);
  EXPECT_TRUE(CPU_EQUAL(&before, &after));
}

// A rank that computes for longer than others wait for it is not taken for stuck.
TEST(ThreadTeamTest, ATaskDoneIsASignOfLife) {
  for (const int threads : {1, 3}) {
    for (const int64_t count : {1, 4}) {
      Trace trace;
      ThreadTeam team(threads, &trace);
      const auto before = trace.last_sign();
      Trace::Clock::time_point begun;
      team.run(count, [&](int64_t task) {
        if (task == count - 1) begun = Trace::Clock::now();
      });
      EXPECT_GT(begun, before);
      EXPECT_GE(trace.last_sign(), begun);
    }
  }
}

TEST(ThreadTeamTest, AnErrorOfATaskComesHomeAndTheTeamGoesOn) {
  ThreadTeam team(4);
  for (int round = 0; round < 20; ++round) {
    EXPECT_THROW(team.run(100, [&](int64_t task) { CHECK(task != 50, "task ", task); }), Error);
    std::atomic<int> done = 0;
    team.run(100, [&](int64_t) { ++done; });
    EXPECT_EQ(done, 100);
  }
}

// As many groups of queries run at once as there are counts: the gradients do not tell how many.
TEST(ThreadTeamTest, AttentionsGradientsDoNotDependOnTheRoomForCounts) {
  const HeadShape shape{4, 2, 16};
  constexpr int64_t kRows = 900;
  const auto tensor = [](auto& values, const Shape& of, Dtype dtype = Dtype::f32) {
    return make_tensor(std::as_writable_bytes(std::span(values)).data(), dtype, of);
  };
  std::vector<float> q = random_values(4 * kRows * 16, 1), kv = random_values(2 * 2 * kRows * 16, 2),
                     d_output = random_values(kRows * 64, 3), lse(4 * kRows, 7.0f), delta = random_values(4 * kRows, 4);
  std::vector<int64_t> first_visible(kRows, 0);
  const Piece all{0, 1, 0, kRows};
  const AttentionStep step{shape, all, all, tensor(first_visible, {kRows, 1, 1, 1}, Dtype::i64)};
  const auto gradients = [&](int threads, int64_t counts) {
    ThreadTeam team(threads);
    std::vector<int64_t> progress(size_t(counts), 0);
    std::vector<float> dq(q.size(), 0.0f), dkv(kv.size(), 0.0f);
    cpu::attention_backward(
        team, progress, step, tensor(q, {4, kRows, 16, 1}), tensor(kv, {2, 2, kRows, 16}),
        {tensor(d_output, {kRows, 64, 1, 1}), tensor(lse, {4, kRows, 1, 1}), tensor(delta, {4, kRows, 1, 1})},
        tensor(dq, {4, kRows, 16, 1}), tensor(dkv, {2, 2, kRows, 16}));
    dq.insert(dq.end(), dkv.begin(), dkv.end());
    return dq;
  };
  const std::vector<float> roomy = gradients(1, 1000);
  EXPECT_TRUE(std::ranges::all_of(roomy, [](float x) { return std::isfinite(x); }));
  EXPECT_NE(roomy, std::vector<float>(roomy.size(), 0.0f));
  for (const int threads : {1, 3}) {
    for (const int64_t counts : {4, 5, 8}) EXPECT_EQ(gradients(threads, counts), roomy) << threads << ", " << counts;
  }
}

TrainingOptions with_threads(int threads) {
  TrainingOptions options;
  options.backend_of = [threads](int) -> MakeBackend {
    return
        [threads](int64_t bytes, Trace& trace) { return make_cpu_backend(bytes, trace, threads); };
  };
  return options;
}

// Long and wide enough that every operation is shared out; one KV head: all queries add to the same
// keys.
TEST(ThreadTeamTest, TrainingHasTheSameBitsOnAnyNumberOfThreads) {
  const TemporaryFolder folder;
  const std::string corpus = make_corpus(folder, 3);
  for (const int64_t ranks : {1, 2}) {
    for (const int64_t kv_heads : {1, 4}) {
      Config config = tiny_training(corpus, ranks, ranks);
      config.run.seq_len = 800;
      config.train.steps = 2;
      config.train.batch_windows = 1;
      config.model.width = 64;
      config.model.kv_heads = kv_heads;
      config.model.head_dim = 16;
      config.model.mlp_width = 160;
      config.model.qk_norm = true;
      config.memory.head_chunk = 512;
      config.memory.mlp_chunk = 700;
      const Trained alone = train_case(config, with_threads(1));
      for (const int threads : {2, 3, 5}) {
        SCOPED_TRACE(testing::Message()
                     << ranks << " ranks, " << kv_heads << " KV heads, " << threads << " threads");
        const Trained trained = train_case(config, with_threads(threads));
        EXPECT_EQ(trained.losses(), alone.losses());
        EXPECT_EQ(trained.gradient_norms(), alone.gradient_norms());
        EXPECT_EQ(trained.weights, alone.weights);
        EXPECT_EQ(trained.first_moments, alone.first_moments);
      }
    }
  }
}

}  // namespace
}  // namespace ringlet::test
