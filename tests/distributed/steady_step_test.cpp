// A training step after the first ones works in memory that it has: nothing is mapped, nothing touched for the first time.
// (Sanitizers keep memory of their own for every access.)
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <limits>

#include "kernels/comm/threads.h"
#include "kernels/cpu/cpu_backend.h"
#include "train/train_step.h"

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

int64_t page_faults() {
  rusage used{};
  getrusage(RUSAGE_SELF, &used);
  return used.ru_minflt + used.ru_majflt;
}

/// Page faults of all ranks' threads in the steadiest two of twelve steps: a helper that came late to all work before, or
/// the system that moved pages, may cost some in others.
int64_t fewest_faults(int ranks, int threads_per_rank) {
  const SequenceLayout layout = make_layout(Layout::zigzag, kLength, ranks);
  int64_t fewest = std::numeric_limits<int64_t>::max(), before = 0;
  run_ranks({ranks, std::chrono::minutes(1)}, [&](Comm& world, Trace& trace) {
    const std::unique_ptr<Backend> device = make_cpu_backend(int64_t{1} << 32, trace, threads_per_rank);
    Parameters parameters(small_model(), *device, {world.rank(), ranks}, Parameters::Gradients::present);
    Gpt gpt(parameters);
    const StepSettings settings{Recompute::none, 512, 1024};
    const ModelRank rank{{*device, world, trace}, world, layout, settings, gpt};
    ShardedAdamW optimizer(parameters, world);
    TrainStep step(rank, parameters, optimizer, MaskRule::document, 0);
    parameters.initialise(1);
    Batch batch;
    batch.window.token_count = kLength;
    batch.window.document_starts = {0};
    for (int64_t i = 0; i < layout.rows(world.rank()); ++i) batch.tokens.push_back(int32_t(i * 7919 % kVocabulary));
    batch.labels = batch.tokens;
    for (int i = 0; i < 12; ++i) {
      const double squares =
          step.accumulate({1, 1, kLength, [&] { return batch; }}, *device, [](std::span<const float>, const Batch&) {});
      step.update(squares, 1.0, {1e-4f, 0.9f, 0.95f, 1e-8f, 0.1f, 1, i + 1});
      if (i % 2 == 0) continue;
      world.barrier();
      if (world.rank() == 0) {
        const int64_t now = page_faults();
        fewest = std::min(fewest, now - before);
        before = now;
      }
      world.barrier();
    }
  });
  return fewest;
}

TEST(SteadyStepTest, TouchesNoNewMemory) {
  for (const auto& [ranks, threads] : {std::pair{1, 1}, {1, 2}, {2, 1}, {4, 2}}) {
    EXPECT_LE(fewest_faults(ranks, threads), 8) << ranks << " ranks of " << threads << " threads";
  }
}

}  // namespace
}  // namespace ringlet::test
#endif
