// What a dry run says of a step is what a real step does: bytes of memory and of messages, on every rank.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kernels/check.h"
#include "tests/support/flat_rates.h"
#include "tests/support/training_case.h"
#include "train/plan/memory_choice.h"
#include "train/plan/paper.h"
#include "train/plan/plan.h"
#include "train/resume.h"

namespace ringlet::test {
namespace {

/// Every config of the project, its sizes as they are but for a length that trains in a second;
/// those for a GPU smaller, of those with stages the first.
std::vector<Config> project_configs(const std::string& corpus) {
  std::vector<Config> configs;
  for (const auto& entry : std::filesystem::directory_iterator(RINGLET_SOURCE_DIR "/configs")) {
    const std::vector<std::string> overrides{"data.corpus=" + corpus, "data.validation=" + corpus,
                                             "run.verify=off", "checkpoint.every=0"};
    Config config = stage_config(load_config(entry.path(), overrides), 1);
    config.run.seq_len = 333;
    config.train.steps = 2;
    config.train.warmup_steps = 0;
    config.train.decay_steps = 1;
    if (config.run.device == DeviceKind::cuda) {
      config.run.device = DeviceKind::cpu;
      config.model.layers = 2;
      config.model.width = config.model.mlp_width = 96;
      config.model.head_dim = 16;
    }
    configs.push_back(config);
  }
  return configs;
}

TEST(PlanTest, BytesOfMemoryAndMessagesAreThoseOfTrainingOnEveryRank) {
  const TemporaryFolder folder;
  const std::string corpus = make_corpus(folder, 20);
  const std::vector<Config> configs = project_configs(corpus);
  ASSERT_GE(configs.size(), 4u);
  for (Config config : configs) {
    config.data.mask = MaskRule::causal;
    for (const Recompute policy : {Recompute::none, Recompute::selective, Recompute::full}) {
      for (const int64_t ranks : {1, 2, 4, 8}) {
        for (const int64_t ring : {ranks, std::max<int64_t>(1, ranks / 2)}) {
          if (ring < ranks && policy != Recompute::selective) continue;
          config.memory.recompute = policy;
          config.run.ranks = ranks;
          config.run.ring = ring;
          config.run.threads_per_rank = 1;
          config.train.batch_windows = ring < ranks ? 5 : 3;  // of two rings: three windows and two
          config.run.pieces = policy == Recompute::none ? 6 : 0;
          config.data.window = policy == Recompute::none ? 40 : 0;
          config.memory.zero_stage = policy == Recompute::full || ring < ranks ? 2 : 1;
          config.memory.offload = policy == Recompute::full ? folder.path().string() : "";
          const MetricsRecord step = train_case(config).records.back();
          const SequenceLayout layout = config.run.sequence_layout();
          for (int rank = 0; rank < ranks; ++rank) {
            const DryRun run{config, config.gpt(257), Mask{{0}, config.data.window}};
            const DryStep dry = DryRank(run, layout, rank).step();
            const std::string where = config.run.name + ' ' + name_of(policy) + ' ' +
                                      std::to_string(rank) + '/' + std::to_string(ring) + '/' +
                                      std::to_string(ranks);
            EXPECT_EQ(dry.peak_bytes, step.peak_bytes[size_t(rank)]) << where;
            EXPECT_EQ(dry.traffic.bytes(), step.sent_bytes[size_t(rank)]) << where;
          }
        }
      }
    }
  }
}

Config causal_training(const std::string& corpus, int64_t ranks) {
  Config config = tiny_training(corpus, ranks, ranks);
  config.data.mask = MaskRule::causal;
  config.train.steps = 2;
  config.train.warmup_steps = 0;
  config.train.decay_steps = 1;
  return config;
}

// The longest context that plan names trains in that memory; 1,024 tokens more do not.
TEST(PlanTest, LongestContextIsTheLongestThatRuns) {
  const TemporaryFolder folder;
  const std::string corpus = make_corpus(folder, 1);
  for (const int64_t ranks : {1, 3}) {
    Config config = causal_training(corpus, ranks);
    config.train.steps = config.train.warmup_steps + 1;
    config.memory.arena_bytes = int64_t{5} << 20;
    const GptConfig gpt = config.gpt(257);
    const int64_t longest = longest_context({config, gpt}, double(config.memory.arena_bytes));
    ASSERT_GT(longest, 1024);
    ASSERT_LT(longest, 15'000);
    config.run.seq_len = longest;
    const int64_t peak = peak_bytes({config, gpt});
    EXPECT_EQ(std::ranges::max(train_case(config).records.back().peak_bytes), peak);
    EXPECT_LE(peak, config.memory.arena_bytes);
    config.run.seq_len = longest + 1024;
    try {
      train_case(config);
      ADD_FAILURE() << "T = " << config.run.seq_len << " trains in " << config.memory.arena_bytes;
    } catch (const Error& error) {
      EXPECT_THAT(error.what(), testing::HasSubstr("bytes")) << error.what();
    }
  }
}

// What one more layer keeps is what the formula says, to the byte.
TEST(PlanTest, ALayerKeepsTheBytesOfItsFormula) {
  for (const bool qk_norm : {false, true}) {
    for (const Recompute policy : {Recompute::none, Recompute::selective, Recompute::full}) {
      Config config = causal_training("", 1);
      config.model.qk_norm = qk_norm;
      config.memory.recompute = policy;
      config.run.seq_len = 4096;
      const auto activations = [&](int64_t layers) {
        config.model.layers = layers;
        const SequenceLayout layout = make_layout(config.run.layout, 4096, 1);
        int64_t bytes = 0;
        const DryRun run{config, config.gpt(257)};
        const DryRank rank(run, layout, 0);
        for (const Arena::Region& region : rank.step().regions) {
          const std::string_view name = region.name;
          if (name != "weights" && name != "gradients" && name != "optimizer") bytes += region.bytes;
        }
        return bytes;
      };
      EXPECT_EQ(activations(6) - activations(5), 4096 * kept_bytes_per_token(config.gpt(257), policy))
          << name_of(policy) << qk_norm;
    }
  }
}

TEST(PlanTest, AutoChoosesTheFirstPolicyThatFits) {
  Config config = causal_training("", 2);
  config.run.seq_len = 4096;
  const GptConfig gpt = config.gpt(257);
  std::vector<int64_t> peaks;
  for (const Recompute policy : {Recompute::none, Recompute::selective, Recompute::full}) {
    config.memory.recompute = policy;
    peaks.push_back(peak_bytes({config, gpt}));
    EXPECT_EQ(resolved_recompute(config, gpt).memory.recompute, policy);
  }
  ASSERT_GT(peaks[0], peaks[1]);
  ASSERT_GT(peaks[1], peaks[2]);
  config.memory.recompute = Recompute::automatic;
  for (size_t i = 0; i < peaks.size(); ++i) {
    config.memory.arena_bytes = peaks[i];
    EXPECT_EQ(resolved_recompute(config, gpt).memory.recompute, Recompute(i));
  }
  config.memory.arena_bytes = peaks[2] - 1;
  EXPECT_THROW(resolved_recompute(config, gpt), Error);
}

int64_t peak_with(Config config, const GptConfig& gpt, Config::Memory memory) {
  config.memory = memory;
  return peak_bytes({config, gpt});
}

// Smaller chunks come before more recomputation, no smaller than the budget asks for.
TEST(PlanTest, AutoLowersChunksBeforeItRecomputesMore) {
  Config config = causal_training("", 1);
  config.run.seq_len = 4096;
  config.model.mlp_width = 1024;  // chunks are the peak
  config.memory = {.recompute = Recompute::selective, .head_chunk = 512, .mlp_chunk = 1024};
  const GptConfig gpt = config.gpt(5000);
  const int64_t smallest = peak_with(config, gpt, {.recompute = Recompute::selective, .head_chunk = 64, .mlp_chunk = 64});
  const int64_t configured = peak_with(config, gpt, config.memory);
  ASSERT_LT(smallest, configured);
  ASSERT_LT(configured, peak_with(config, gpt, {.recompute = Recompute::none, .head_chunk = 64, .mlp_chunk = 64}));
  config.memory.recompute = Recompute::automatic;
  for (const int64_t budget : {smallest, (smallest + configured) / 2, configured - 1, configured}) {
    config.memory.arena_bytes = budget;
    const Config::Memory chosen = resolved_recompute(config, gpt).memory;
    EXPECT_EQ(chosen.recompute, Recompute::selective);
    EXPECT_LE(peak_with(config, gpt, chosen), budget);
    EXPECT_EQ(chosen.head_chunk == 512 && chosen.mlp_chunk == 1024, budget == configured);
    for (int64_t Config::Memory::*chunk : {&Config::Memory::head_chunk, &Config::Memory::mlp_chunk}) {
      EXPECT_GE(chosen.*chunk, 64);
      Config::Memory larger = chosen;
      larger.*chunk *= 2;
      if (larger.*chunk <= config.memory.*chunk) {
        EXPECT_GT(peak_with(config, gpt, larger), budget);
      }
    }
  }
  config.memory.arena_bytes = smallest - 1;
  EXPECT_EQ(resolved_recompute(config, gpt).memory.recompute, Recompute::full);
}

// Gradients are sharded where that saves recomputation, and only there.
TEST(PlanTest, AutoShardsGradientsBeforeItRecomputesMore) {
  Config config = causal_training("", 4);
  config.run.seq_len = 4096;
  config.model.layers = 6;
  config.train.batch_windows = 1;
  config.memory = {.recompute = Recompute::automatic, .head_chunk = 64, .mlp_chunk = 64};
  const GptConfig gpt = config.gpt(257);
  const auto peak = [&](Recompute policy, int64_t zero_stage) {
    return peak_with(config, gpt, {.recompute = policy, .zero_stage = zero_stage, .head_chunk = 64, .mlp_chunk = 64});
  };
  const auto chosen = [&](int64_t budget) {
    config.memory.arena_bytes = budget;
    const Config::Memory memory = resolved_recompute(config, gpt).memory;
    return std::pair(memory.recompute, memory.zero_stage);
  };
  for (const Recompute policy : {Recompute::none, Recompute::selective, Recompute::full}) {
    ASSERT_LT(peak(policy, 2), peak(policy, 1));
    EXPECT_EQ(chosen(peak(policy, 1)), std::pair(policy, int64_t{1}));
    EXPECT_EQ(chosen(peak(policy, 1) - 1), std::pair(policy, int64_t{2}));
    EXPECT_EQ(chosen(peak(policy, 2)), std::pair(policy, int64_t{2}));
  }
  config.memory.arena_bytes = peak(Recompute::full, 2) - 1;
  EXPECT_THROW(resolved_recompute(config, gpt), Error);
  EXPECT_EQ(smallest_memory({config, gpt}).zero_stage, 2);
  config.train.batch_windows = 3;  // they would be summed three times a step: before nothing fits, recompute
  EXPECT_EQ(chosen(peak(Recompute::none, 1) - 1), std::pair(Recompute::selective, int64_t{1}));
  EXPECT_EQ(chosen(peak(Recompute::full, 1) - 1).second, 2);
  config.train.batch_windows = 1;
  config.run.ranks = config.run.ring = 1;  // nobody to share with
  config.memory.arena_bytes = peak(Recompute::full, 1) - 1;
  EXPECT_THROW(resolved_recompute(config, gpt), Error);
}

// What "auto" found when a run began stays, or a resumed run would have other bits.
TEST(PlanTest, AutoStaysWithWhatARunBeganWith) {
  const TemporaryFolder folder;
  Config config = causal_training("", 2);
  config.run.folder = folder.path();
  config.memory = {.recompute = Recompute::automatic, .head_chunk = 512, .mlp_chunk = 1024, .arena_bytes = 1 << 22};
  const GptConfig gpt = config.gpt(257);
  EXPECT_EQ(to_toml(with_earlier_memory(config, gpt)), to_toml(config));  // it has not begun
  Config began = config;
  began.memory = {.recompute = Recompute::selective, .zero_stage = 2, .head_chunk = 128, .mlp_chunk = 256,
                  .arena_bytes = 1 << 21};
  RunFolder(config.run.path(), RunStart::fresh).write_config(to_toml(began));
  const Config resumed = with_earlier_memory(config, gpt);
  EXPECT_EQ(changed_settings(config, resumed),
            (std::vector<std::string>{"memory.recompute=selective", "memory.zero_stage=2", "memory.head_chunk=128",
                                      "memory.mlp_chunk=256"}));
  config.memory.mlp_chunk = 128;  // asked for since
  EXPECT_EQ(with_earlier_memory(config, gpt).memory.recompute, Recompute::automatic);
  config.memory.mlp_chunk = 1024;
  config.memory.arena_bytes = 1000;  // it does not fit any more
  EXPECT_EQ(with_earlier_memory(config, gpt).memory.recompute, Recompute::automatic);
}

// Of a world too large to run every rank, the few that are run are those of the whole.
TEST(PlanTest, LargeWorldsAreToldFromAFewRanks) {
  Config config = causal_training("", 128);
  config.run.seq_len = 10'000;  // some ranks hold fewer rows
  const DryRun run{config, config.gpt(257)};
  const Plan plan = make_plan(run);
  EXPECT_FALSE(plan.every_rank);
  EXPECT_LT(plan.ranks.size(), 8u);
  const SequenceLayout layout = make_layout(config.run.layout, config.run.seq_len, 128);
  int64_t peak = 0;
  for (int rank = 0; rank < 128; ++rank) peak = std::max(peak, DryRank(run, layout, rank).step().peak_bytes);
  EXPECT_EQ(plan.fullest().peak_bytes, peak);
  EXPECT_EQ(peak_bytes(run), peak);
  // Four windows on sixteen rings are four windows on four.
  config.run.ring = 8;
  config.train.batch_windows = 4;
  const double sixteen = make_plan({config, config.gpt(257)}).flops.executed;
  config.run.ranks = 32;
  const double four = make_plan({config, config.gpt(257)}).flops.executed;
  EXPECT_NEAR(sixteen, four, 0.05 * four);
}

TEST(PlanTest, TimeIsWorkOverRateWhereNothingIsWaitedFor) {
  Config config = causal_training("", 1);
  config.run.seq_len = 500;
  const DryRun run{config, config.gpt(257)};
  const Rates rates = flat_rates(1e6, 1e30, {1e9, 1e-6, "a link"});
  const Plan plan = make_plan(run, &rates);
  EXPECT_NEAR(plan.step_seconds, plan.flops.executed / 1e6, 1e-6 * plan.step_seconds);
  EXPECT_EQ(plan.bubble_percent(), 0);
  // Twice as many threads as cores: half as fast.
  EXPECT_NEAR(make_plan(run, &rates, 4, 2).step_seconds, 2 * plan.step_seconds, 1e-6 * plan.step_seconds);
}

TEST(PlanTest, AContiguousRingWaitsForItsLastRankAndAZigzagOneDoesNot) {
  Config config = causal_training("", 4);
  config.run.seq_len = 4096;
  const Rates rates = flat_rates(1e9, 1e30, {1e15, 0, "no obstacle"});
  config.run.layout = Layout::zigzag;
  const Plan zigzag = make_plan({config, config.gpt(257)}, &rates);
  config.run.layout = Layout::contiguous;
  const Plan contiguous = make_plan({config, config.gpt(257)}, &rates);
  EXPECT_LT(zigzag.bubble_percent(), 1);
  EXPECT_GT(contiguous.bubble_percent(), 10);
  EXPECT_GT(contiguous.step_seconds, 1.1 * zigzag.step_seconds);
  for (const RankTime& rank : contiguous.times) EXPECT_NEAR(rank.late_seconds, rank.exposed_seconds, 1e-6);
}

// With a link so slow that compute is nothing beside it, a step takes as long as its bytes; longer by as much as one rank
// waits where the other one sends more.
TEST(PlanTest, ASlowLinkTakesTheTimeOfItsBytes) {
  Config config = causal_training("", 2);
  config.run.seq_len = 512;
  const Rates rates = flat_rates(1e30, 1e30, {1e3, 0, "a slow link"});
  const Plan plan = make_plan({config, config.gpt(257)}, &rates);
  double most = 0, all = 0;
  for (const DryStep& rank : plan.ranks) {
    most = std::max(most, double(rank.traffic.bytes()));
    all += double(rank.traffic.bytes());
  }
  EXPECT_GE(plan.step_seconds, most / 1e3);
  EXPECT_LE(plan.step_seconds, all / 1e3);
  EXPECT_GT(plan.bubble_percent(), 99);
  for (const RankTime& rank : plan.times) EXPECT_LT(rank.late_seconds, 0.3 * rank.exposed_seconds);
}

// Copies of block inputs hide behind compute where they are fast, and take the time of their bytes where they are slow
// or where no core is free to make them.
TEST(PlanTest, OffloadedInputsTakeTheTimeThatTheirCopiesDoNotHide) {
  Config config = causal_training("", 1);
  config.run.seq_len = 512;
  config.memory.recompute = Recompute::full;
  const auto plan_at = [&](double rate, int cores) {
    Rates rates = flat_rates(1e9, 1e30, {1e15, 0, "no obstacle"});
    rates.offload_bytes_per_second = rate;
    return make_plan({config, config.gpt(257)}, &rates, 1, cores);
  };
  const double computed = plan_at(1, 2).step_seconds;  // nothing is copied
  config.memory.offload = "a folder";
  EXPECT_EQ(plan_at(0, 2).step_seconds, computed);  // not known
  EXPECT_NEAR(plan_at(1e12, 2).step_seconds, computed, 1e-3 * computed);
  const Plan slow = plan_at(1e3, 2);
  const double bytes = double(slow.fullest().offloaded_bytes);
  ASSERT_GT(bytes, 0);
  EXPECT_NEAR(slow.step_seconds, bytes / 1e3, computed);
  EXPECT_NEAR(slow.times.front().copy_seconds, bytes / 1e3, computed);
  EXPECT_EQ(slow.bubble_percent(), 0);
  const double rate = bytes / computed;  // as long as all of the compute
  EXPECT_LT(plan_at(rate, 2).step_seconds, 1.8 * computed);
  EXPECT_NEAR(plan_at(rate, 1).step_seconds, 2 * computed, 1e-6 * computed);
  config.run.device = DeviceKind::cuda;  // which copies by itself, whatever the processor does
  config.memory.offload = Config::Memory::kHost;
  EXPECT_LT(plan_at(rate, 1).step_seconds, 1.8 * computed);
}

TEST(PlanTest, AHopHidesFromTheThresholdOn) {
  GptConfig gpt;
  gpt.heads = {8, 2, 64};
  const Rates rates = flat_rates(1e12, 1e30, {1e9, 1e-4, "a link"});
  const auto expect_threshold = [](double least, double flops, double bytes) {
    for (const double tokens : {least, 2 * least}) {
      const double compute = flops * 8 * 64 * tokens * tokens / 1e12;
      const double message = 1e-4 + bytes * 2 * 64 * tokens / 1e9;
      EXPECT_GE(compute * (1 + 1e-9), message);
      EXPECT_EQ(compute < message * 1.001, tokens == least);
    }
  };
  for (const Dtype dtype : {Dtype::f32, Dtype::bf16}) {  // keys and values in the model's, gradients in f32
    gpt.dtype = dtype;
    const HideThreshold hide = hide_threshold(gpt, rates, 1000);
    const double kv_bytes = dtype == Dtype::f32 ? 8 : 4;
    expect_threshold(hide.forward_tokens, 2, kv_bytes);
    expect_threshold(hide.backward_tokens, 5, kv_bytes + 8);
  }
}

}  // namespace
}  // namespace ringlet::test
