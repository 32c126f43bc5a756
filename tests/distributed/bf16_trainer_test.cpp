// Training in bf16: on rings, resumed, sharded, planned, and with an f32 checkpoint before or behind it.
#include <gtest/gtest.h>

#include <algorithm>

#include "tests/support/bf16.h"
#include "tests/support/training_case.h"
#include "train/plan/plan.h"
#include "train/resume.h"

namespace ringlet::test {
namespace {

/// Relative, between two ways to compute the same in bf16: a rounding is 2^-9, and 20 steps add theirs up.
constexpr double kBf16Loss = 5e-3;

struct Bf16TrainerTest : testing::Test {
  TemporaryFolder folder;
  const std::string corpus = make_corpus(folder, 6);

  Config config(int64_t ranks, int64_t ring, ComputeDtype dtype = ComputeDtype::bf16) const {
    Config config = tiny_training(corpus, ranks, ring);
    config.run.dtype = dtype;
    config.train.steps = 20;
    config.train.learning_rate = 3e-3;
    return config;
  }

  Trained interrupted(const Config& first, const Config& second, int64_t step) const {
    const auto path = folder.path() / "run";
    std::filesystem::remove_all(path);
    return train_interrupted(path, first, second, step);
  }
};

/// The losses of a training that may have begun later.
void expect_near_losses(const Trained& actual, const Trained& expected, double tolerance) {
  const size_t skipped = expected.records.size() - actual.records.size();
  for (size_t i = 0; i < actual.records.size(); ++i) {
    const double loss = expected.records[skipped + i].loss;
    EXPECT_NEAR(actual.records[i].loss, loss, tolerance * loss) << "step " << actual.records[i].step;
  }
}

void expect_same_state(const Trained& actual, const Trained& expected) {
  EXPECT_EQ(actual.weights, expected.weights);
  EXPECT_EQ(actual.first_moments, expected.first_moments);
  EXPECT_EQ(actual.second_moments, expected.second_moments);
}

TEST_F(Bf16TrainerTest, RingsTrainWhatOneRankTrainsAndTheSameBitsAgain) {
  const Trained alone = train_case(config(1, 1));
  EXPECT_LT(alone.losses().back(), 0.8 * alone.losses().front());
  expect_near_losses(alone, train_case(config(1, 1, ComputeDtype::f32)), 1e-2);
  for (const Layout layout : {Layout::zigzag, Layout::contiguous, Layout::striped}) {
    SCOPED_TRACE(name_of(layout));
    Config rings = config(8, 4);
    rings.run.layout = layout;
    const Trained trained = train_case(rings), again = train_case(rings);
    expect_near_losses(trained, alone, kBf16Loss);
    EXPECT_EQ(again.losses(), trained.losses());
    expect_same_state(again, trained);
  }
}

TEST_F(Bf16TrainerTest, ResumingOnTheSameWorldGivesTheSameBits) {
  for (const auto& [ranks, ring] : {std::pair{1, 1}, {3, 3}, {4, 2}}) {
    SCOPED_TRACE(testing::Message() << ranks << " ranks in rings of " << ring);
    const Trained whole = train_case(config(ranks, ring));
    const Trained resumed = interrupted(config(ranks, ring), config(ranks, ring), 7);
    ASSERT_EQ(resumed.records.front().step, 9);
    expect_near_losses(resumed, whole, 0);
    expect_same_state(resumed, whole);
  }
}

TEST_F(Bf16TrainerTest, ResumingOnAnotherWorldGoesOn) {
  const Trained whole = train_case(config(2, 2));
  for (const auto& [ranks, ring] : {std::pair{1, 1}, {4, 4}, {3, 1}}) {
    SCOPED_TRACE(testing::Message() << ranks << " ranks in rings of " << ring);
    const Trained resumed = interrupted(config(2, 2), config(ranks, ring), 7);
    ASSERT_EQ(resumed.records.front().step, 9);
    expect_near_losses(resumed, whole, kBf16Loss);
  }
}

// What the optimizer adds to is saved, not what the model reads.
TEST_F(Bf16TrainerTest, CheckpointsHoldTheWeightsInF32) {
  Config base = config(4, 2);
  base.train.steps = 3;
  for (const int64_t stage : {1, 2}) {
    base.memory.zero_stage = stage;
    RunFolder run(folder.path() / std::to_string(stage), RunStart::fresh);
    const Trained trained = train_case(base, {.folder = &run});
    std::vector<Skipped> skipped;
    const auto checkpoint = newest_whole_checkpoint(run.checkpoints(), skipped);
    ASSERT_TRUE(checkpoint.has_value());
    for (const auto& [name, weights] : trained.weights) {
      std::vector<float> saved(weights.size());
      checkpoint->read_weights(name, saved);
      EXPECT_EQ(saved, weights) << name;
      EXPECT_FALSE(std::ranges::all_of(saved, [](float x) { return x == round_to_bf16(x); })) << name;
    }
  }
}

// With one window for each ring the same numbers are added in the same order.
TEST_F(Bf16TrainerTest, ShardedGradientsTrainTheSameBits) {
  for (const auto& [ranks, ring] : {std::pair{3, 3}, {4, 2}}) {
    Config base = config(ranks, ring);
    base.train.steps = 4;
    base.train.batch_windows = ranks / ring;
    base.model.layers = 6;  // of which two have whole gradients at a time
    const Trained whole = train_case(base);
    base.memory.zero_stage = 2;
    const Trained sharded = train_case(base);
    expect_same_state(sharded, whole);
    EXPECT_EQ(sharded.gradient_norms(), whole.gradient_norms());
    EXPECT_LT(sharded.records[0].peak_bytes[0], whole.records[0].peak_bytes[0]);
  }
}

TEST_F(Bf16TrainerTest, RecomputePoliciesTrainTheSameBits) {
  Config base = config(3, 3);
  base.train.steps = 3;
  base.memory.recompute = Recompute::none;
  const Trained kept = train_case(base);
  for (const Recompute policy : {Recompute::selective, Recompute::full}) {
    base.memory.recompute = policy;
    EXPECT_EQ(train_case(base).weights, kept.weights);
  }
}

// And a run that saves needs no more memory than that.
TEST_F(Bf16TrainerTest, BytesOfMemoryAndMessagesAreThosePlanned) {
  for (const Recompute policy : {Recompute::none, Recompute::selective, Recompute::full}) {
    for (const auto& [ranks, ring] : {std::pair{1, 1}, {2, 2}, {4, 4}, {4, 2}}) {
      for (const bool tied : {true, false}) {
        SCOPED_TRACE(testing::Message() << name_of(policy) << ' ' << ring << '/' << ranks << ' ' << tied);
        Config planned = config(ranks, ring);
        planned.data.mask = MaskRule::causal;
        planned.train.steps = 2;
        planned.train.warmup_steps = 0;
        planned.model.tied_head = tied;
        planned.model.qk_norm = !tied;
        planned.memory.recompute = policy;
        planned.memory.zero_stage = tied ? 2 : 1;
        planned.memory.offload = policy == Recompute::full ? folder.path().string() : "";
        planned.train.batch_windows = 3;
        planned.checkpoint.every = 1;
        const DryRun run{planned, planned.gpt(257)};
        planned.memory.arena_bytes = peak_bytes(run);
        RunFolder saved(folder.path() / "planned", RunStart::fresh);
        const MetricsRecord step = train_case(planned, {.folder = &saved}).records.back();
        const SequenceLayout layout = make_layout(planned.run.layout, planned.run.seq_len, ring);
        for (int rank = 0; rank < ranks; ++rank) {
          const DryStep dry = DryRank(run, layout, rank).step();
          EXPECT_EQ(dry.peak_bytes, step.peak_bytes[size_t(rank)]) << "rank " << rank;
          EXPECT_EQ(dry.traffic.bytes(), step.sent_bytes[size_t(rank)]) << "rank " << rank;
        }
        std::filesystem::remove_all(folder.path() / "planned");
      }
    }
  }
}

// Activations and messages are half as large, weights and gradients are not. (The processor widens what it computes
// on.)
TEST_F(Bf16TrainerTest, LongContextsTakeLessMemoryAndMessagesThanInF32OnAGpu) {
  const auto step_in = [&](ComputeDtype dtype) {
    Config large = config(4, 4, dtype);
    large.run.seq_len = 4096;
    large.run.device = DeviceKind::cuda;
    return DryRank({large, large.gpt(257)}, make_layout(large.run.layout, 4096, 4), 0).step();
  };
  const DryStep half = step_in(ComputeDtype::bf16), whole = step_in(ComputeDtype::f32);
  EXPECT_LT(half.peak_bytes, 3 * whole.peak_bytes / 4);
  EXPECT_LT(half.traffic.bytes(), 3 * whole.traffic.bytes() / 4);
}

TEST_F(Bf16TrainerTest, ACheckpointGoesOnInTheOtherDtypeAndSaysSo) {
  const Trained in_f32 = train_case(config(2, 2, ComputeDtype::f32));
  for (const ComputeDtype dtype : {ComputeDtype::bf16, ComputeDtype::f32}) {
    const bool to_bf16 = dtype == ComputeDtype::bf16;
    const Config first = config(2, 2, to_bf16 ? ComputeDtype::f32 : ComputeDtype::bf16);
    const Config second = config(2, 2, dtype);
    const Trained mixed = interrupted(first, second, 7);
    ASSERT_EQ(mixed.records.front().step, 9);
    expect_near_losses(mixed, in_f32, 1e-2);
    // The run is in the other dtype now: the way back is told of again.
    RunFolder run(folder.path() / "run", RunStart::resume);
    std::vector<std::string> said;
    const auto checkpoint = checkpoint_to_resume(run, first, Corpus::open(corpus),
                                                 [&](const std::string& line) { said.push_back(line); });
    ASSERT_TRUE(checkpoint.has_value());
    const std::string change = to_bf16 ? "\"bf16\" to \"f32\"" : "\"f32\" to \"bf16\"";
    EXPECT_EQ(std::ranges::count(said, "changed since the checkpoint: run.dtype from " + change), 1);
  }
}

}  // namespace
}  // namespace ringlet::test
