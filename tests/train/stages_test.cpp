#include "train/stages.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "data/sampler.h"
#include "kernels/check.h"
#include "train/config_keys.h"

namespace ringlet {
namespace {

using testing::HasSubstr;

constexpr const char* kThree =
    "[run]\nseq_len = 256\n[train]\nlearning_rate = 0.004\nbatch_windows = 2\n"
    "[[stage]]\ntokens = 10_000\n"  // 20 steps of 512
    "[[stage]]\nseq_len = 1000\nbatch_windows = 1\ntokens = 3_001\nlearning_rate = 0.02\n"  // 4
                                                                                            // steps
    "[[stage]]\nseq_len = 512\ntokens = 1\nrope_base = 777\nwarmup_steps = 0\n";  // 1 step

Config staged(const std::string& text = kThree, const std::vector<std::string>& overrides = {}) {
  return parse_config(text, "x.toml", overrides);
}

std::string refusal_of(const std::string& text, const std::vector<std::string>& overrides = {}) {
  try {
    staged(text, overrides);
  } catch (const UsageError& error) {
    return std::string(error.what()) + " | " + error.advice;
  }
  return "no error";
}

TEST(Stages, LastAsLongAsTheirTokensInWholeSteps) {
  const Config config = staged();
  EXPECT_EQ(config.train.steps, 25);
  EXPECT_EQ(stage_place(config, 1), (StagePlace{1, 0, 20}));
  EXPECT_EQ(stage_place(config, 2), (StagePlace{2, 20, 4}));
  EXPECT_EQ(stage_place(config, 3), (StagePlace{3, 24, 1}));
  const std::pair<int64_t, int64_t> stages_of_steps[] = {{0, 1},  {1, 1},  {20, 1}, {21, 2},
                                                         {24, 2}, {25, 3}, {99, 3}};
  for (const auto& [step, stage] : stages_of_steps)
    EXPECT_EQ(stage_at(config, step).number, stage) << step;
  EXPECT_EQ(staged("[[stage]]\ntokens = 8192").train.steps, 2);
  EXPECT_EQ(staged("[[stage]]\ntokens = 8193").train.steps, 3);
}

TEST(Stages, HaveFromTheConfigWhatTheyDoNotSay) {
  const Config config = staged();
  const Config first = stage_config(config, 1), second = stage_config(config, 2),
               third = stage_config(config, 3);
  EXPECT_TRUE(second.stages.empty());
  EXPECT_EQ(first.run.seq_len, 256);
  EXPECT_EQ(second.run.seq_len, 1000);
  EXPECT_EQ(second.train.batch_windows, 1);
  EXPECT_EQ(third.train.batch_windows, 2);  // not that of the stage before
  EXPECT_EQ(third.train.learning_rate, 0.004);
  EXPECT_EQ(second.train.steps, 4);
  // What follows from other values follows from the stage's own.
  EXPECT_EQ(second.train.final_learning_rate, 0.002);
  EXPECT_EQ(first.train.warmup_steps, 10);
  EXPECT_EQ(second.train.warmup_steps, 2);
  EXPECT_EQ(first.model.rope_base, parse_config("[run]\nseq_len = 256", "x").model.rope_base);
  EXPECT_EQ(second.model.rope_base, parse_config("[run]\nseq_len = 1000", "x").model.rope_base);
  EXPECT_EQ(third.model.rope_base, 777);
  EXPECT_EQ(
      stage_config(staged("[model]\nrope_base = 500\n[[stage]]\ntokens = 1\nseq_len = 9000"), 1)
          .model.rope_base,
      500);
  EXPECT_EQ(stage_config(staged("[train]\nwarmup_steps = 1\n[[stage]]\ntokens = 100_000"), 1)
                .train.warmup_steps,
            1);
}

TEST(Stages, RunTheirScheduleFromTheirFirstStepToTheirLast) {
  const Config config = staged();
  const ScheduleSettings first = stage_config(config, 1).schedule(),
                         second = stage_config(config, 2).schedule();
  EXPECT_EQ(learning_rate(first, 1), 0.0004);
  EXPECT_EQ(learning_rate(first, 10), 0.004);
  EXPECT_EQ(learning_rate(first, 20), 0.0004);
  EXPECT_EQ(learning_rate(second, 1), 0.01);
  EXPECT_EQ(learning_rate(second, 2), 0.02);
  EXPECT_EQ(learning_rate(second, 4), 0.002);
}

TEST(Stages, HaveAnOrderOfTheirOwn) {
  const Config config = staged(
      "[run]\nseed = 5\n[[stage]]\ntokens = 1\n[[stage]]\ntokens = 1\n[[stage]]\ntokens = 1");
  EXPECT_EQ(stage_config(config, 1).run.seed, 5);
  std::set<std::vector<int64_t>> orders;
  for (int64_t number = 1; number <= 3; ++number) {
    std::vector<int64_t> order;
    for (int64_t cursor = 0; cursor < 40; ++cursor) {
      order.push_back(window_of(uint64_t(stage_config(config, number).run.seed), cursor, 40,
                                OrderMode::shuffled));
    }
    orders.insert(order);
  }
  EXPECT_EQ(orders.size(), 3u);
}

TEST(Stages, AConfigWithoutAnyIsItsOnlyStage) {
  const Config config = parse_config("[train]\nsteps = 7\n[run]\nseed = 3", "x");
  EXPECT_EQ(stage_count(config), 1);
  EXPECT_EQ(to_toml(stage_config(config, 1)), to_toml(config));
  EXPECT_EQ(stage_place(config, 1), (StagePlace{1, 0, 7}));
  EXPECT_EQ(stage_at(config, 50).number, 1);
  EXPECT_EQ(to_toml(config).find("[[stage]]"), std::string::npos);
}

TEST(Stages, AreReadBackAsTheyWereWritten) {
  const std::string text = to_toml(staged());
  EXPECT_EQ(to_toml(staged(text)), text);
  EXPECT_THAT(text, HasSubstr("[[stage]]\ntokens = 3001\nseq_len = 1000\n"));
  EXPECT_EQ(text.find("\nsteps = "), std::string::npos);
  // And each alone is a config.
  const std::string alone = to_toml(stage_config(staged(), 2));
  EXPECT_EQ(to_toml(staged(alone)), alone);
}

TEST(Stages, AreChangedFromTheCommandLine) {
  const std::vector<std::string> settings{"stage.2.learning_rate=0.5", "train.learning_rate=0.25",
                                          "stage.3.tokens=2000", "stage.1.schedule=constant",
                                          "stage.3.rope_base=auto"};
  const Config before = staged(), after = staged(kThree, settings);
  EXPECT_EQ(after.stages[0].learning_rate, 0.25);
  EXPECT_EQ(after.stages[0].schedule, ScheduleShape::constant);
  EXPECT_EQ(after.stages[1].learning_rate, 0.5);
  EXPECT_EQ(after.stages[2].steps(), 2);
  EXPECT_GT(after.stages[2].rope_base, 777);
  std::vector<std::string> changed = changed_settings(before, after);
  EXPECT_THAT(changed, testing::IsSupersetOf({"stage.2.learning_rate=0.5",
                                              "stage.2.final_learning_rate=0.05",
                                              "stage.1.learning_rate=0.25", "stage.3.tokens=2000",
                                              "train.learning_rate=0.25"}));
  EXPECT_THAT(changed, testing::Each(testing::Not(testing::StartsWith("train.steps"))));
  // What stages say themselves is enough to change them so.
  std::erase_if(changed, [](const std::string& one) { return !one.starts_with("stage."); });
  EXPECT_EQ(
      changed_settings(staged(to_toml(before), changed), after),
      (std::vector<std::string>{"train.learning_rate=0.25", "train.final_learning_rate=0.025",
                                "train.warmup_steps=13"}));  // half of all steps
  EXPECT_EQ(setting_of_stage("memory.recompute=full", 2), "stage.2.recompute=full");
  EXPECT_EQ(setting_of_stage("train.learning_rate=0.5", 1), "stage.1.learning_rate=0.5");
  EXPECT_EQ(setting_of_stage("model.width=0.5", 1), "model.width=0.5");
}

TEST(Stages, MistakesAreNamedWithFileLineAndKey) {
  const std::pair<const char*, const char*> cases[] = {
      {"[[stage]]\nseq_len = 4",
       "x.toml:1: stage 1 has no tokens | say how long it lasts, as in tokens"},
      {"[[stage]]\ntokens = 9\n[[stage]]\n\ntokens = 9\nseqlen = 5",
       "x.toml:6: unknown key 'stage.2.seqlen' | did you mean 'stage.2.seq_len'?"},
      {"[[stage]]\ntokens = 9\nelephants = 5",
       "x.toml:3: unknown key 'stage.1.elephants' | a stage may set tokens, seq_len, "},
      {"[[stage]]\ntokens = 1.5", "x.toml:2: stage.1.tokens must be an integer, not a number"},
      {"[[stage]]\ntokens = 0",
       "x.toml:2: stage.1.tokens = 0 cannot be | choose a value of at least 1"},
      {"[[stage]]\ntokens = 5\nseq_len = 0", "x.toml:3: stage.1.seq_len = 0 cannot be"},
      {"[[stage]]\ntokens = 5\nschedule = 'ramp'", "choose one of: cosine, constant, wsd"},
      {"[stage]\ntokens = 5",
       "x.toml:1: stage must be tables in double brackets | write [[stage]]"},
      {"stage = []", "x.toml:1: stage must be tables in double brackets"},
      {"[[stages]]\ntokens = 5", "x.toml:1: unknown key 'stages' | did you mean [[stage]]?"},
      {"[train]\nsteps = 5\n[[stage]]\ntokens = 5",
       "x.toml:2: train.steps cannot be beside [[stage]] | leave it out"},
      {"[[stage]]\ntokens = 99\n[[stage]]\ntokens = 99\nwarmup_steps = 5",
       "x.toml: stage 2: train.warmup_steps = 5 is more than train.steps = 1 | choose"},
      {"[train]\nfinal_learning_rate = 0.1\n[[stage]]\ntokens = 99\nlearning_rate = 0.01",
       "stage 1: train.final_learning_rate = 0.1 is more than train.learning_rate = 0.01"},
  };
  for (const auto& [text, expected] : cases)
    EXPECT_THAT(refusal_of(text), HasSubstr(expected)) << text;
}

TEST(Stages, SettingsThatNoStageHeedsAreRefused) {
  const std::string each =
      "[[stage]]\ntokens = 9\nseq_len = 8\n[[stage]]\ntokens = 9\nseq_len = 16";
  EXPECT_EQ(refusal_of(each, {"run.seq_len=99"}),
            "--set run.seq_len=99: every [[stage]] says its own seq_len | set it there, as in "
            "--set stage.1.seq_len=99");
  EXPECT_EQ(refusal_of(kThree, {"run.seq_len=99"}), "no error");  // the first stage heeds it
  EXPECT_EQ(refusal_of(each, {"train.steps=3"}),
            "--set train.steps=3: train.steps cannot be beside [[stage]] | set a stage's "
            "tokens, as in --set stage.1.tokens=1000000");
  EXPECT_THAT(refusal_of(each, {"stage.3.tokens=3"}),
              HasSubstr("there is no stage 3 | choose one from 1 to 2"));
  EXPECT_THAT(refusal_of(each, {"stage.0.tokens=3"}), HasSubstr("there is no stage 0"));
  EXPECT_THAT(refusal_of("", {"stage.1.tokens=3"}),
              HasSubstr("there is no stage 1 | the config has no [[stage]]"));
  EXPECT_THAT(refusal_of(each, {"stage.x.tokens=3"}),
              HasSubstr("unknown key 'stage.x.tokens' | write it as in"));
  EXPECT_THAT(refusal_of(each, {"stage.tokens=3"}),
              HasSubstr("unknown key 'stage.tokens' | write it as in"));
  EXPECT_THAT(refusal_of(each, {"stage.2.token=3"}), HasSubstr("did you mean 'stage.2.tokens'?"));
  EXPECT_THAT(refusal_of(each, {"stage.2.tokens=many"}),
              HasSubstr("stage.2.tokens must be an integer"));
}

// In comments: a config with a stage is no config of defaults.
TEST(Stages, ReferenceDocumentsEveryKeyOfThem) {
  std::ifstream stream(std::filesystem::path(RINGLET_SOURCE_DIR) / "configs/reference.toml");
  std::vector<std::string> listed, known;
  std::string example, line;
  bool begun = false, documented = false;
  while (std::getline(stream, line)) {
    begun = begun || line == "# [[stage]]";
    if (!begun) continue;
    const std::string text = line.substr(2);
    const size_t equals = text.find(" = ");
    const bool is_key = equals != std::string::npos && text.find(' ') == equals;
    if (is_key) {
      listed.push_back(text.substr(0, equals));
      EXPECT_TRUE(documented) << text << " has no comment above it";
    }
    if (is_key || text == "[[stage]]") example += text + "\n";
    documented = !is_key && text != "[[stage]]";
  }
  Config::Stage stage;
  for (const ConfigKey& key : stage_keys_of(stage)) known.emplace_back(key_of_stage(key.name));
  EXPECT_EQ(listed, known);
  EXPECT_EQ(refusal_of(example), "no error");
}

TEST(Stages, TheLongestIsTheOneThatCommandsTakeUnlessNamed) {
  std::string said;
  const auto say = [&](const std::string& line) { said = line; };
  EXPECT_EQ(one_stage(staged(), 0, say).run.seq_len, 1000);
  EXPECT_THAT(said, HasSubstr("stage 2 of 3, the longest: T = 1000"));
  said = "";
  EXPECT_EQ(one_stage(staged(), 3, say).run.seq_len, 512);
  EXPECT_EQ(one_stage(parse_config("", "x"), 0, say).run.seq_len, 4096);
  EXPECT_EQ(said, "");
  EXPECT_THROW(one_stage(staged(), 4, say), UsageError);
  EXPECT_THROW(one_stage(parse_config("", "x"), 2, say), UsageError);
}

}  // namespace
}  // namespace ringlet
