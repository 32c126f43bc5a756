// What a plan says of the windows of a corpus, and how `plan --tune` ranks settings.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "tests/support/flat_rates.h"
#include "tests/support/training_case.h"
#include "train/plan/corpus_windows.h"
#include "train/plan/tune.h"

namespace ringlet::test {
namespace {

Config causal_training(int64_t ranks) {
  Config config = tiny_training("", ranks, ranks);
  config.data.mask = MaskRule::causal;
  config.train.batch_windows = 1;
  return config;
}

// What a plan says of the windows of a corpus is what the trainer sends in each of its steps, on every rank.
TEST(CorpusWindowsTest, BytesAreThoseOfTraining) {
  const TemporaryFolder folder;
  const std::string path = make_corpus(folder, 200);
  const Corpus corpus = Corpus::open(path);
  int64_t saved = 0;  // by the documents' ends
  for (const Layout layout : {Layout::zigzag, Layout::contiguous, Layout::striped}) {
    for (const int64_t ring : {4, 2}) {
      Config config = tiny_training(path, 4, ring);
      config.run.layout = layout;
      config.run.seq_len = 600;
      config.train.steps = 4;
      config.train.batch_windows = 3;  // uneven shares
      const DryRun run{config, config.gpt(257)};
      const CorpusPlan plan = plan_windows(run, corpus, 11);
      const Plan worst = make_plan(run);
      const std::vector<MetricsRecord> records = train_case(config).records;
      ASSERT_EQ(plan.steps.size(), records.size());
      for (size_t step = 0; step < records.size(); ++step) {
        ASSERT_EQ(plan.steps[step].windows.size(), 3u);
        for (size_t rank = 0; rank < 4; ++rank) {
          const int64_t sent = plan.steps[step].plan.ranks[rank].traffic.bytes();
          EXPECT_EQ(sent, records[step].sent_bytes[rank]) << name_of(layout) << ring << ' ' << step << ' ' << rank;
          saved += worst.ranks[rank].traffic.bytes() - sent;
        }
        EXPECT_LT(plan.steps[step].plan.flops.model, worst.flops.model);
      }
    }
  }
  EXPECT_GT(saved, 0);
}

TEST(CorpusWindowsTest, WorkAndTimeAreOfItsWindows) {
  const TemporaryFolder folder;
  const Corpus corpus = Corpus::open(make_corpus(folder, 50));
  Config config = causal_training(1);
  config.data.order = OrderMode::sequential;
  config.run.seq_len = 600;
  config.train.batch_windows = 2;
  const Rates rates = flat_rates(1e6, 1e30, {1e9, 1e-6, "a link"});
  const DryRun run{config, config.gpt(257)};
  const CorpusPlan plan = plan_windows(run, corpus, 4, &rates);
  ASSERT_EQ(plan.steps.size(), 2u);
  double pairs = 0;  // of whole windows: padding is computed as well
  for (const Window& window : plan.steps[1].windows) {
    const Piece whole{0, 1, 0, 600};
    pairs += double(visible_pairs({window.document_starts}, whole, whole));
  }
  EXPECT_EQ(plan.steps[1].windows[1].index, 3);
  const DryStep& rank = plan.steps[1].plan.ranks[0];
  EXPECT_DOUBLE_EQ(rank.attention_flops, 14.0 * double(run.gpt.layers * run.gpt.heads.q_width()) * pairs);
  EXPECT_NEAR(plan.steps[1].plan.step_seconds, (rank.attention_flops + rank.matmul_flops) / 1e6, 1e-6);
}

/// The settings of 4 ranks on a link of so many bytes a second.
Tuning tune_on(const Config& config, double bytes_per_second, double budget_bytes) {
  return tune(config, config.gpt(257), flat_rates(1e9, 1e30, {bytes_per_second, 0, "a link"}), budget_bytes, 1, 0);
}

TEST(TuneTest, EverySettingIsPlannedAsTheTrainerWouldRunIt) {
  Config config = causal_training(4);
  config.run.seq_len = 512;
  const Tuning tuning = tune_on(config, 2e7, 1e12);
  ASSERT_EQ(tuning.settings.size(), 9u);  // some of them are hidden, so no longer windows
  std::set<std::pair<int64_t, Layout>> splits;
  double before = tuning.settings.front().tokens_per_second;
  for (const TunedSetting& setting : tuning.settings) {
    EXPECT_LE(setting.tokens_per_second, std::exchange(before, setting.tokens_per_second));
    splits.insert({setting.config.run.ring_size(), setting.config.run.layout});
    // From what is printed alone:
    std::vector<std::string> settings = changed_settings(Config{}, config);
    settings.insert(settings.end(), setting.set.begin(), setting.set.end());
    const Config again = parse_config("", "a test", settings);
    const Rates rates = flat_rates(1e9, 1e30, {2e7, 0, "a link"});
    const Plan plan = make_plan({again, again.gpt(257)}, &rates);
    EXPECT_EQ(plan.step_seconds, setting.step_seconds);
    EXPECT_EQ(plan.fullest().peak_bytes, setting.peak_bytes);
    EXPECT_EQ(plan.ranks.back().windows, again.train.batch_windows * again.run.ring_size() / 4);
    EXPECT_EQ(setting.change == Change::model, again.model.kv_heads != config.model.kv_heads);
  }
  EXPECT_EQ(splits.size(), 7u);  // rings of 4 and 2 in three layouts, a ring of one
}

// A window that reaches 63 tokens back needs little of a block: in more pieces less of it travels.
TEST(TuneTest, TriesMorePiecesAHopWhereTheyAreFaster) {
  Config config = causal_training(4);
  config.run.seq_len = 4096;
  const auto in_pieces = [](const Tuning& tuning) {
    int64_t count = 0;
    for (const TunedSetting& setting : tuning.settings) {
      const bool more = setting.config.run.pieces > 0;
      count += more ? 1 : 0;
      EXPECT_EQ(more, std::ranges::any_of(setting.set, [](const std::string& set) { return set.starts_with("run.pieces="); }));
      if (more) {
        EXPECT_GE(setting.pieces, setting.config.run.pieces);
      }
    }
    return count;
  };
  config.data.window = 64;
  const Tuning slow = tune_on(config, 1e6, 1e12);
  EXPECT_GE(in_pieces(slow), 4);
  const auto sent = [&](Layout layout, int64_t pieces) {
    const auto found = std::ranges::find_if(slow.settings, [&](const TunedSetting& setting) {
      return setting.config.run.layout == layout && setting.config.run.ring_size() == 4 && setting.config.run.pieces == pieces &&
             setting.config.run.seq_len == 4096 && setting.change == Change::nothing;
    });
    return found == slow.settings.end() ? -1 : found->sent_bytes;
  };
  EXPECT_LT(sent(Layout::zigzag, 8), sent(Layout::zigzag, 0));
  EXPECT_GT(sent(Layout::zigzag, 8), 0);
}

TEST(TuneTest, NamesTheLeastChangeThatHides) {
  Config config = causal_training(4);
  config.run.seq_len = 512;
  const Tuning fast = tune_on(config, 1e15, 1e12);
  ASSERT_NE(fast.first_hidden(), nullptr);
  EXPECT_TRUE(fast.first_hidden()->set.empty());
  config.run.layout = Layout::contiguous;  // its last rank works longest
  const Tuning uneven = tune_on(config, 1e15, 1e12);
  ASSERT_NE(uneven.first_hidden(), nullptr);
  EXPECT_EQ(uneven.first_hidden()->set.size(), 1u);
  EXPECT_THAT(uneven.first_hidden()->set[0], testing::StartsWith("run.layout="));
  config.run.layout = Layout::zigzag;
  const Tuning slow = tune_on(config, 1e6, 1e12);  // longer windows hide what these cannot
  ASSERT_NE(slow.first_hidden(), nullptr);
  EXPECT_EQ(slow.first_hidden()->change, Change::context);
  EXPECT_LT(slow.first_hidden()->bubble_percent, kHiddenPercent);
  EXPECT_EQ(tune_on(config, 1e2, 4e6).first_hidden(), nullptr);
}

TEST(TuneTest, WhatDoesNotFitStandsAtTheEndOrRecomputesMore) {
  Config config = causal_training(4);
  config.run.seq_len = 2048;
  config.memory.recompute = Recompute::none;
  const double budget = double(peak_bytes({config, config.gpt(257)})) - 1;
  const Tuning tuning = tune_on(config, 1e15, budget);
  EXPECT_TRUE(tuning.settings.front().fits);
  EXPECT_FALSE(tuning.settings.back().fits);
  EXPECT_TRUE(std::ranges::is_partitioned(tuning.settings, &TunedSetting::fits));
  for (const TunedSetting& setting : tuning.settings) {
    EXPECT_EQ(double(setting.peak_bytes) <= budget, setting.fits);
    EXPECT_TRUE(setting.fits || setting.config.run.pieces == 0);
    const bool whole = setting.config.run.ring_size() == 4 && setting.config.run.seq_len == 2048 &&
                       setting.config.run.layout == Layout::zigzag && setting.config.run.pieces == 0 &&
                       setting.change == Change::nothing;
    if (whole) {
      EXPECT_EQ(setting.set, std::vector<std::string>{"memory.recompute=selective"});
    }
  }
}

TEST(TuneTest, MeasuredStepsAreTheTrainersOwn) {
  Config config = causal_training(2);
  config.run.link = "100MB/s,10us";
  const Tuning tuning = tune_on(config, 1e15, 1e12);
  const std::vector<const TunedSetting*> chosen = settings_to_measure(tuning);
  ASSERT_EQ(chosen.size(), 4u);
  EXPECT_EQ(chosen.front(), tuning.first_hidden());
  const MeasuredSteps steps = measure_steps(*chosen.front());
  EXPECT_EQ(steps.peak_bytes, chosen.front()->peak_bytes);
  EXPECT_GT(steps.step_seconds, double(chosen.front()->sent_bytes) / 1e8 / 2);  // the link is in the way
  EXPECT_GT(steps.bubble_percent, 0);
}

}  // namespace
}  // namespace ringlet::test
