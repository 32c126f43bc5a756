// A training step after the first ones works in memory that it has, and its ranks and their threads find each other without
// a lock: nothing is allocated, nothing mapped or touched for the first time, no mutex taken.
#include <dlfcn.h>
#include <gtest/gtest.h>
#include <pthread.h>
#include <sys/resource.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <limits>
#include <memory>
#include <mutex>
#include <vector>

#include "data/prefetch.h"
#include "kernels/comm/threads.h"
#include "kernels/cpu/cpu_backend.h"
#include "tests/support/sanitized.h"
#include "tests/support/training_case.h"
#include "train/train_step.h"

namespace {

// Of the whole process.
std::atomic<int64_t> allocations{0}, locks{0};

}  // namespace

// In this program these stand before the C library's. A sanitizer has its own.
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
extern "C" void* __libc_malloc(size_t bytes);
extern "C" void* __libc_memalign(size_t alignment, size_t bytes);

extern "C" void* malloc(size_t bytes) {
  ++allocations;
  return __libc_malloc(bytes);
}

extern "C" void* aligned_alloc(size_t alignment, size_t bytes) {
  ++allocations;
  return __libc_memalign(alignment, bytes);
}

extern "C" int pthread_mutex_lock(pthread_mutex_t* mutex) {
  static const auto lock = reinterpret_cast<int (*)(pthread_mutex_t*)>(dlsym(RTLD_NEXT, "pthread_mutex_lock"));
  ++locks;
  return lock(mutex);
}
#endif

namespace ringlet::test {
namespace {

constexpr int64_t kLength = 4096, kVocabulary = 300;

GptConfig small_model() {
  GptConfig gpt;
  gpt.vocabulary = kVocabulary;
  gpt.layers = 2;
  gpt.width = 32;
  gpt.heads = {2, 2, 16};
  gpt.mlp_width = 80;
  return gpt;
}

struct Ranks {
  int ranks, ring_size, threads_per_rank;
  Layout layout = Layout::zigzag;
  Recompute recompute = Recompute::none;
  Parameters::Gradients gradients = Parameters::Gradients::present;
};

/// What two steps ask of the system.
struct Costs {
  int64_t page_faults, allocations, locks;

  static Costs so_far() {
    rusage used{};
    getrusage(RUSAGE_SELF, &used);
    return {used.ru_minflt + used.ru_majflt, ::allocations, ::locks};
  }
  Costs operator-(const Costs& before) const {
    return {page_faults - before.page_faults, allocations - before.allocations, locks - before.locks};
  }
  void lower_to(const Costs& other) {
    page_faults = std::min(page_faults, other.page_faults);
    allocations = std::min(allocations, other.allocations);
    locks = std::min(locks, other.locks);
  }
};

/// The least of each, of all ranks' threads together, in any two of twelve steps: a helper that came late to all work
/// before, or the system that moved pages, may cost some in others.
Costs steadiest_two_steps(const Ranks& setup) {
  constexpr int64_t kMost = std::numeric_limits<int64_t>::max();
  const SequenceLayout layout = make_layout(setup.layout, kLength, setup.ring_size);
  Costs least{kMost, kMost, kMost}, before{};
  run_ranks({setup.ranks, std::chrono::minutes(1)}, [&](Comm& world, Trace& trace) {
    const std::unique_ptr<Backend> device = make_cpu_backend(int64_t{1} << 32, trace, setup.threads_per_rank);
    const std::unique_ptr<Comm> ring = world.split(world.rank() / setup.ring_size);
    Parameters parameters(small_model(), *device, {world.rank(), setup.ranks}, setup.gradients);
    Gpt gpt(parameters);
    const StepSettings settings{setup.recompute, 512, 1024};
    const ModelRank rank{{*device, *ring, trace}, world, layout, settings, gpt};
    ShardedAdamW optimizer(parameters, world);
    TrainStep step(rank, parameters, optimizer, MaskRule::document, 0);
    parameters.initialise(1);
    // Windows of unlike documents take turns.
    std::array<Batch, 2> batches;
    batches[0].window.document_starts = {0, 100, 3000};
    batches[1].window.document_starts = {0};
    for (Batch& batch : batches) {
      batch.window.token_count = kLength;
      for (int64_t i = 0; i < layout.rows(ring->rank()); ++i) batch.tokens.push_back(int32_t(i * 7919 % kVocabulary));
      batch.labels = batch.tokens;
    }
    int64_t window = 0;
    const auto next = [&] { return &batches[size_t(window++ % 2)]; };
    for (int i = 0; i < 12; ++i) {
      const double squares =
          step.accumulate({2, 2, 2 * kLength, next}, *device, [](std::span<const float>, const Batch&) {});
      step.update(squares, 1.0, {1e-4f, 0.9f, 0.95f, 1e-8f, 0.1f, 1, i + 1});
      if (i % 2 == 0) continue;
      world.barrier();
      if (world.rank() == 0) {
        const Costs now = Costs::so_far();
        if (i > 1) least.lower_to(now - before);
        before = now;
      }
      world.barrier();
    }
  });
  return least;
}

TEST(SteadyStepTest, TouchesNoNewMemoryAllocatesNothingAndTakesNoLock) {
  if (kSanitized) GTEST_SKIP() << "a sanitizer has memory and locks of its own for every access";
  for (const Ranks& setup : {Ranks{1, 1, 1}, Ranks{1, 1, 2}, Ranks{2, 2, 1}, Ranks{4, 2, 2},
                             Ranks{3, 3, 1, Layout::contiguous, Recompute::selective},
                             Ranks{2, 2, 2, Layout::striped, Recompute::full, Parameters::Gradients::in_turns}}) {
    SCOPED_TRACE(testing::Message() << setup.ranks << " ranks of " << setup.threads_per_rank << " threads, rings of "
                                    << setup.ring_size << ", " << name_of(setup.layout));
    const Costs costs = steadiest_two_steps(setup);
    EXPECT_LE(costs.page_faults, 8);
    EXPECT_EQ(costs.allocations, 0);
    EXPECT_EQ(costs.locks, 0);
  }
}

TEST(SteadyStepTest, WindowsAreReadInMemoryThatIsThere) {
  if (kSanitized) GTEST_SKIP() << "a sanitizer has memory and locks of its own for every access";
  const TemporaryFolder folder;
  const Corpus corpus = Corpus::open(make_corpus(folder, 12));
  const WindowReader windows(corpus, 1000);
  const int64_t count = windows.plan().window_count();
  Prefetcher prefetcher(windows, {{0, 1, 0, 500}, {600, 1, 500, 400}}, [&](int64_t k) { return k % count; }, 0, 2);
  const auto read_all = [&] {
    for (int64_t i = 0; i < 10 * count; ++i) EXPECT_EQ(prefetcher.next().tokens.size(), 900u);
  };
  read_all();
  const Costs before = Costs::so_far();
  read_all();
  const Costs costs = Costs::so_far() - before;
  EXPECT_EQ(costs.allocations, 0);
  EXPECT_EQ(costs.locks, 0);
}

TEST(SteadyStepTest, CountsAllocationsAndLocks) {
  if (kSanitized) GTEST_SKIP() << "a sanitizer has memory and locks of its own for every access";
  const Costs before = Costs::so_far();
  std::mutex mutex;
  const std::lock_guard lock(mutex);
  const std::vector<int> list(100, 1);
  EXPECT_EQ(list.back(), 1);
  const Costs costs = Costs::so_far() - before;
  EXPECT_GE(costs.allocations, 1);
  EXPECT_GE(costs.locks, 1);
}

}  // namespace
}  // namespace ringlet::test
