// A run in stages: one state, one lineage of checkpoints, bit-equal wherever it was interrupted.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kernels/check.h"
#include "tests/support/training_case.h"
#include "train/plan/memory_choice.h"
#include "train/plan/plan.h"
#include "train/resume.h"

namespace ringlet::test {
namespace {

using testing::Contains;
using testing::HasSubstr;

struct StagesTest : testing::Test {
  TemporaryFolder folder;
  const std::string corpus = make_corpus(folder, 6);

  /// Steps 1 to 4 on windows of 48 tokens, 5 to 7 of 96, 8 to 10 of 150.
  Config config(int64_t ranks, int64_t ring, const std::vector<std::string>& more = {}) const {
    Config base = tiny_training(corpus, ranks, ring);
    std::vector<std::string> settings{"data.corpus=" + corpus};
    std::string text = to_toml(base);
    text.replace(text.find("\nsteps = 30"), 11, "");
    text.replace(text.find("\nwarmup_steps = 4"), 17, "\nwarmup_steps = 1");
    text +=
        "\n[[stage]]\ntokens = 760\nseq_len = 48\nbatch_windows = 4\nrope_base = 400\n"
        "[[stage]]\ntokens = 576\nseq_len = 96\nrope_base = 2000\nlearning_rate = "
        "0.004\nfinal_learning_rate = 0.001\n"
        "[[stage]]\ntokens = 450\nseq_len = 150\nbatch_windows = 1\nrope_base = 5000\nrecompute = "
        "'full'\n";
    return parse_config(text, "a test", more);
  }

  /// Saved after `step`, resumed with `second`.
  Trained interrupted(const Config& first, const Config& second, int64_t step) {
    std::filesystem::remove_all(folder.path() / "run");
    return train_interrupted(folder.path() / "run", first, second,
                             step - 1);  // a stop is seen in the step after
  }

  /// What resuming from a checkpoint of `saved`, stopped after `step`, with `config` says, and in
  /// the end throws.
  std::vector<std::string> resuming(const Config& saved, int64_t step, const Config& config) {
    std::filesystem::remove_all(folder.path() / "run");
    std::vector<std::string> said;
    const auto say = [&](const std::string& line) { said.push_back(line); };
    try {
      {
        RunFolder run(folder.path() / "run", RunStart::fresh);
        TrainingOptions options;
        options.folder = &run;
        options.stop_after_step = step - 1;
        train_case(saved, options);
      }
      RunFolder run(folder.path() / "run", RunStart::resume);
      checkpoint_to_resume(run, config, Corpus::open(config.data.corpus), say);
    } catch (const Error& error) {
      said.push_back(std::string("error: ") + error.what());
      EXPECT_NE(error.advice, "");
    }
    return said;
  }
};

TEST_F(StagesTest, GoOnWhereTheOneBeforeHasEnded) {
  const Trained trained = train_case(config(2, 2));
  ASSERT_EQ(trained.records.size(), 10u);
  const std::vector<int64_t> lengths{48, 96, 150}, ends{4, 7, 10};
  for (size_t i = 0; i < 10; ++i) {
    const MetricsRecord& record = trained.records[i];
    const size_t stage = i < 4 ? 0 : i < 7 ? 1 : 2;
    EXPECT_EQ(record.step, int64_t(i + 1));
    EXPECT_EQ(record.steps, 10);
    EXPECT_EQ(record.stage, int64_t(stage + 1));
    EXPECT_EQ(record.seq_len, lengths[stage]);
    EXPECT_EQ(record.loss_by_position.back().last, lengths[stage] - 1);
    EXPECT_GT(record.tokens, i == 0 ? 0 : trained.records[i - 1].tokens);
    EXPECT_LT(record.loss, i == 0 ? 6 : 1.05 * trained.records[i - 1].loss)
        << "a stage that began anew";
    if (record.step == ends[stage]) {
      EXPECT_EQ(record.learning_rate, 0.001) << i;
    } else if (i == 4) {
      EXPECT_EQ(record.learning_rate, 0.004);
    } else if (i == 0 || i == 7) {
      EXPECT_EQ(record.learning_rate, 0.01);
    }
  }
  EXPECT_THAT(
      trained.said,
      Contains(
          "stage 2 of 3: T = 96, rope base 2000, learning rate 0.004 to 0.001 (cosine), 576 tokens "
          "in 3 steps"));
}

// Weights, moments and losses: in the middle of each stage, at its end, at the first step of the
// next.
TEST_F(StagesTest, ResumedInAnyOfThemAreTheSameBits) {
  for (const auto& [ranks, ring] : {std::pair{1, 1}, {2, 2}, {4, 2}}) {
    const Trained whole = train_case(config(ranks, ring));
    for (const int64_t step : {2, 4, 5, 7, 9}) {
      SCOPED_TRACE(testing::Message() << ranks << " ranks, saved after step " << step);
      const Trained resumed = interrupted(config(ranks, ring), config(ranks, ring), step);
      ASSERT_EQ(resumed.records.size(), size_t(10 - step));
      ASSERT_EQ(resumed.records.front().step, step + 1);
      for (size_t i = 0; i < resumed.records.size(); ++i) {
        EXPECT_EQ(resumed.records[i].loss, whole.records[size_t(step) + i].loss);
        EXPECT_EQ(resumed.records[i].gradient_norm, whole.records[size_t(step) + i].gradient_norm);
        EXPECT_EQ(resumed.records[i].tokens, whole.records[size_t(step) + i].tokens);
      }
      EXPECT_EQ(resumed.weights, whole.weights);
      EXPECT_EQ(resumed.first_moments, whole.first_moments);
      EXPECT_EQ(resumed.second_moments, whole.second_moments);
    }
  }
}

TEST_F(StagesTest, OnAnotherWorldTheyGoOnWithTheSameDataAndState) {
  const Trained whole = train_case(config(1, 1));
  for (const int64_t step : {3, 4, 6}) {
    const Trained resumed = interrupted(config(1, 1), config(4, 2), step);
    ASSERT_FALSE(resumed.records.empty());
    EXPECT_EQ(resumed.records.back().step, 10);
    for (const MetricsRecord& record : resumed.records) {
      const MetricsRecord& expected = whole.records[size_t(record.step - 1)];
      EXPECT_NEAR(record.loss, expected.loss, 1e-4 * expected.loss) << record.step;
      EXPECT_EQ(record.tokens, expected.tokens);
    }
  }
}

// bf16 weights round the masters, ZeRO-2 shards gradients, block inputs wait in a file with room
// for the longest stage.
TEST_F(StagesTest, ResumeInEveryKindOfMemory) {
  const std::vector<std::string> kinds[] = {
      {"run.dtype=bf16"}, {"memory.zero_stage=2", "memory.offload=" + folder.path().string()}};
  for (const std::vector<std::string>& kind : kinds) {
    const Config training = config(2, 1, kind);
    const Trained whole = train_case(training), resumed = interrupted(training, training, 5);
    EXPECT_EQ(resumed.losses().back(), whole.losses().back());
    EXPECT_EQ(resumed.weights, whole.weights);
    EXPECT_EQ(resumed.second_moments, whole.second_moments);
  }
}

TEST_F(StagesTest, OneOfThemIsARunWithoutStages) {
  Config plain = tiny_training(corpus, 2, 2);
  plain.train.steps = 5;
  plain.train.warmup_steps = plain.train.decay_steps = 1;
  std::string text = to_toml(plain);
  text.replace(text.find("\nsteps = 5"), 10, "");
  const Config one = parse_config(text + "\n[[stage]]\ntokens = 960", "a test");
  ASSERT_EQ(one.train.steps, 5);
  const Trained expected = train_case(plain), trained = train_case(one);
  EXPECT_EQ(trained.losses(), expected.losses());
  EXPECT_EQ(trained.weights, expected.weights);
  EXPECT_EQ(trained.second_moments, expected.second_moments);
  // And a run that began without any may get more of them.
  const Config more = parse_config(
      text + "\n[[stage]]\ntokens = 960\n[[stage]]\ntokens = 400\nseq_len = 150", "a test");
  const Trained whole = train_case(more), continued = interrupted(plain, more, 3);
  EXPECT_EQ(continued.weights, whole.weights);
  EXPECT_EQ(continued.losses().back(), whole.losses().back());
  EXPECT_THAT(resuming(plain, 3, more), Contains(HasSubstr("resuming ")));
}

// The stop that comes with the last step of a stage must not wait for a step of the next.
TEST_F(StagesTest, AStopInTheLastStepOfAStageIsHeeded) {
  RunFolder run(folder.path() / "stopped", RunStart::fresh);
  TrainingOptions options;
  options.folder = &run;
  options.stop_after_step = 3;
  const Trained trained = train_case(config(2, 2), options);
  EXPECT_EQ(trained.end, RunEnd::interrupted);
  EXPECT_EQ(trained.records.size(), 4u);
  std::vector<Skipped> skipped;
  const auto saved = newest_whole_checkpoint(run.checkpoints(), skipped);
  ASSERT_TRUE(saved);
  EXPECT_EQ(saved->info().step, 4);
  const Config reached = trained_config(saved->info());
  EXPECT_EQ(reached.run.seq_len, 48);  // of the stage that it was trained in
  EXPECT_EQ(reached.model.rope_base, 400);
  const std::vector<std::string> longer{"run.seq_len=200"};
  EXPECT_EQ(trained_config(saved->info(), longer).run.seq_len, 200);
}

TEST_F(StagesTest, EachHasTheMemoryThatIsPlannedForIt) {
  const Config training = config(2, 2, {"data.mask=causal"});
  const Trained trained = train_case(training);
  for (int64_t number = 1; number <= 3; ++number) {
    const Config alone = stage_config(training, number);
    const MetricsRecord& record =
        trained.records[size_t(stage_place(training, number).end_step() - 1)];
    EXPECT_EQ(std::ranges::max(record.peak_bytes), peak_bytes({alone, alone.gpt(257)})) << number;
  }
}

TEST_F(StagesTest, AutoFindsAndKeepsAPolicyForEach) {
  const std::vector<std::string> automatic{"memory.recompute=auto", "stage.3.recompute=auto",
                                           "run.folder=" + folder.path().string()};
  Config training = config(1, 1, automatic);
  training.stages[2].seq_len = 4000;
  const GptConfig gpt = training.gpt(257);
  training.memory.arena_bytes = 8 << 20;
  const Config resolved = resolved_recompute(training, gpt);
  EXPECT_EQ(resolved.stages[0].recompute, Recompute::none);
  EXPECT_EQ(resolved.stages[2].recompute, Recompute::full);
  RunFolder(training.run.path(), RunStart::fresh).write_config(to_toml(resolved));
  training.memory.arena_bytes = 1 << 30;
  EXPECT_EQ(with_earlier_memory(training, gpt).stages[2].recompute, Recompute::full);
  training.memory.arena_bytes = 8 << 20;
  training.stages[2].seq_len = 40'000;
  try {
    resolved_recompute(training, gpt);
    ADD_FAILURE();
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), HasSubstr("stage 3: no recompute policy fits"));
  }
}

TEST_F(StagesTest, WhatLiesBehindMayNotMove) {
  const Config before = config(1, 1);
  const auto with = [&](const std::string& setting) { return config(1, 1, {setting}); };
  EXPECT_THAT(resuming(before, 6, with("stage.1.tokens=950")),
              Contains(HasSubstr("error: the checkpoint's step 6 is step 2 of its stage 2, but "
                                 "step 1 of stage 2 in the config")));
  EXPECT_THAT(resuming(before, 6, with("stage.2.tokens=100")),
              Contains(HasSubstr("error: the checkpoint's step 6 is step 2 of its stage 2, but "
                                 "step 1 of stage 3 in the config")));
  EXPECT_THAT(resuming(before, 6, with("stage.2.rope_base=3000")),
              Contains(HasSubstr("error: model.rope_base is 3000")));
  EXPECT_THAT(resuming(before, 6, with("stage.1.learning_rate=0.5")),
              Contains("changed since the checkpoint, in stage 1, which is over and stays as it "
                       "was: train.learning_rate from "
                       "0.01 to 0.5"));
  EXPECT_THAT(resuming(before, 6, with("stage.2.learning_rate=0.5")),
              Contains("changed since the checkpoint: train.learning_rate from 0.004 to 0.5"));
}

TEST_F(StagesTest, WhatLiesAheadMayChange) {
  const Config before = config(1, 1);
  for (const char* setting : {"stage.2.tokens=2000", "stage.3.seq_len=200", "stage.3.tokens=1"}) {
    const std::vector<std::string> said = resuming(before, 6, config(1, 1, {setting}));
    EXPECT_THAT(said, Contains(HasSubstr("resuming "))) << setting;
  }
  Config fewer = before, more = before;
  fewer.stages.pop_back();
  more.stages.push_back(more.stages.back());
  for (Config* other : {&fewer, &more}) {
    other->train.steps = stage_place(*other, stage_count(*other)).end_step();
    EXPECT_THAT(resuming(before, 6, *other), Contains(HasSubstr("resuming ")));
  }
}

TEST_F(StagesTest, ACorpusThatIsTooShortForOneIsAnErrorBeforeTheFirst) {
  Config training = config(1, 1);
  training.stages[2].seq_len = 1 << 20;
  try {
    train_case(training);
    ADD_FAILURE();
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), testing::MatchesRegex("stage 3: .*: the corpus has .* a window needs 1048576"));
  }
}

}  // namespace
}  // namespace ringlet::test
