// `ringlet study`: what it varies, and that it goes on where it was cut.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <thread>

#include "kernels/check.h"
#include "model/gpt_config.h"
#include "tests/support/program.h"
#include "tests/support/training_case.h"
#include "train/study/study_plan.h"

namespace ringlet::test {
namespace {

namespace fs = std::filesystem;
using testing::ElementsAre;
using testing::HasSubstr;

/// A folder with a training corpus, a validation corpus and a tiny config.
struct StudyTest : testing::Test {
  TemporaryFolder temporary;
  const fs::path folder = temporary.path();
  const std::string corpus = make_corpus(temporary, 4);
  const std::string validation = make_corpus(temporary, 3, "validation");
  const std::string novel = make_corpus(temporary, 1, "novel");  // one document
  const fs::path config = folder / "tiny.toml";

  StudyTest() {
    write_text(config,
               "[model]\nlayers = 1\nwidth = 16\nheads = 2\nmlp_width = 32\n[data]\ncorpus = \"" +
                   corpus + "\"\nvalidation = \"" + validation +
                   "\"\n[run]\nseq_len = 128\nranks = 2\n[train]\nsteps = 40\nwarmup_steps = 30\n"
                   "eval_every = 40\neval_windows = 16\n[checkpoint]\nevery = 10\n");
  }
  StudyRequest request(const char* name, std::vector<std::string> overrides = {}) {
    return {.kind = &study_named(name),
            .config = config,
            .folder = folder / "s",
            .overrides = std::move(overrides)};
  }
  std::vector<std::string> arguments(const std::string& name, std::vector<std::string> more = {}) {
    more.insert(more.begin(), {"study", name, config.string(), "-o", "s"});
    return more;
  }
  ProgramResult study(const std::string& name, std::vector<std::string> more = {}) {
    return run_program(RINGLET_PROGRAM, arguments(name, std::move(more)), folder);
  }
  std::vector<std::string> lines() {
    std::ifstream stream(folder / "s" / "variants.jsonl");
    std::vector<std::string> lines;
    for (std::string line; std::getline(stream, line);) lines.push_back(line);
    return lines;
  }
  /// The steps in a run's metrics, evaluations left out.
  std::vector<int64_t> steps_of(const std::string& variant) {
    std::ifstream stream(folder / "s" / "runs" / variant / "metrics.jsonl");
    std::vector<int64_t> steps;
    for (std::string line; std::getline(stream, line);) {
      const auto record = nlohmann::json::parse(line);
      if (record.contains("loss")) steps.push_back(record["step"]);
    }
    return steps;
  }
  void wait_for_step(const std::string& variant, int64_t step) {
    const fs::path metrics = folder / "s" / "runs" / variant / "metrics.jsonl";
    const std::string mark = "\"step\":" + std::to_string(step) + ",";
    for (int i = 0; i < 20'000 && file_text(metrics).find(mark) == std::string::npos; ++i) {
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
    ASSERT_NE(file_text(metrics).find(mark), std::string::npos) << "never came to step " << step;
  }
};

TEST_F(StudyTest, LengthsHaveTheSameTokens) {
  const StudyPlan plan = plan_study(request("context"));
  ASSERT_EQ(plan.runs.size(), 4u);
  std::vector<std::string> names;
  for (const PlannedRun& run : plan.runs) {
    EXPECT_EQ(run.facts.status, RunStatus::done) << run.facts.reason;
    const Config own = config_of(request("context"), run);
    EXPECT_EQ(own.run.seq_len * own.train.batch_windows, 128);
    EXPECT_EQ(own.run.seq_len * own.train.eval_windows, 16 * 128);
    EXPECT_EQ(own.train.steps, 20);
    EXPECT_EQ(own.run.path(), folder / "s" / "runs" / run.variant.name);
    names.push_back(run.variant.name);
  }
  EXPECT_THAT(names, ElementsAre("T_16", "T_32", "T_64", "T_128"));
  EXPECT_EQ(plan.text.block_tokens, 128);
  StudyRequest large = request("context");
  large.size = StudySize::large;
  for (const PlannedRun& run : plan_study(large).runs) {
    const Config own = config_of(large, run);
    EXPECT_EQ(own.run.seq_len * own.train.batch_windows, 4 * 128) << run.variant.name;
    EXPECT_EQ(own.train.steps, 20);  // four times the tokens
  }
}

TEST_F(StudyTest, EveryStudyVariesWhatItSays) {
  const auto values = [&](const char* name, const auto& value) {
    std::vector<std::decay_t<decltype(value(Config{}))>> all;
    for (const PlannedRun& run : plan_study(request(name)).runs)
      all.push_back(value(config_of(request(name), run)));
    return all;
  };
  EXPECT_THAT(values("document-mask", [](const Config& c) { return c.data.mask; }),
              ElementsAre(MaskRule::causal, MaskRule::document));
  EXPECT_THAT(values("ring", [](const Config& c) { return c.run.ranks; }),
              ElementsAre(1, 2, 2, 2, 4, 4, 4));
  EXPECT_THAT(values("ring", [](const Config& c) { return c.train.steps; }), testing::Each(10));
  const double bound = auto_rope_base(8, 128);
  ASSERT_GT(bound, 2e4);
  const auto bases = values("rope-base", [](const Config& c) { return c.model.rope_base; });
  ASSERT_EQ(bases.size(), 5u);
  EXPECT_NEAR(bases[0] / bound, 0.01, 1e-6);
  EXPECT_NEAR(bases[2] / bound, 1, 1e-5);
  EXPECT_NEAR(bases[3] / bound, 10, 1e-4);
  EXPECT_EQ(bases[4], 1e4);
  EXPECT_EQ(plan_study(request("rope-base")).settings["reference"], "bound");
}

TEST_F(StudyTest, StepsTokensAndSeedsAreTheRequests) {
  StudyRequest wanted = request("document-mask");
  wanted.tokens = 1000;
  wanted.seeds = 2;
  const StudyPlan plan = plan_study(wanted);
  ASSERT_EQ(plan.runs.size(), 4u);
  EXPECT_EQ(config_of(wanted, plan.runs[0]).train.steps, 8);  // of 128 tokens
  EXPECT_EQ(config_of(wanted, plan.runs[0]).train.warmup_steps, 4);
  EXPECT_EQ(plan.runs[1].seed, 1);
  EXPECT_EQ(plan.runs[2].seed, 2);
  EXPECT_EQ(config_of(wanted, plan.runs[2]).run.name, "causal_seed_2");
  wanted.tokens = 0;
  wanted.steps = 5;
  EXPECT_EQ(config_of(wanted, plan_study(wanted).runs[0]).train.steps, 5);
}

TEST_F(StudyTest, WhatCannotBeTrainedKeepsItsReason) {
  const auto reasons = [&](const char* name, const std::string& override) {
    std::vector<std::string> all;
    for (const PlannedRun& run : plan_study(request(name, {override})).runs)
      all.push_back(run.facts.reason);
    return all;
  };
  EXPECT_THAT(reasons("document-mask", "memory.arena_bytes=100000")[0],
              HasSubstr("out of memory: needs"));
  EXPECT_THAT(reasons("ring", "train.log_every=1"), testing::Each(""));
  StudyRequest large = request("context", {"run.seq_len=8192"});
  large.size = StudySize::large;
  const StudyPlan plan = plan_study(large);
  EXPECT_EQ(plan.runs[0].facts.reason, "");
  EXPECT_THAT(plan.runs[5].facts.reason, HasSubstr("a window needs 32768"));
  EXPECT_THROW(plan_study(request("document-mask", {"data.validation=" + novel})), Error);
  EXPECT_THROW(plan_study(request("ring", {"data.validation=", "train.eval_every=0"})), UsageError);
}

// Killed inside the first variant, asked to stop inside the second: no step stands twice, no
// finished variant is repeated.
TEST_F(StudyTest, GoesOnInsideTheRunThatWasCut) {
  {
    Program killed(RINGLET_PROGRAM, arguments("document-mask", {"--steps", "400"}), folder);
    wait_for_step("causal", 12);
    killed.send(SIGKILL);
    EXPECT_EQ(killed.finish().exit_code, 128 + SIGKILL);
  }
  EXPECT_EQ(lines().size(), 1u);
  ProgramResult stopped;
  {
    Program program(RINGLET_PROGRAM, arguments("document-mask", {"--steps", "400"}), folder);
    wait_for_step("document", 5);
    program.send(SIGTERM);
    stopped = program.finish();
  }
  EXPECT_EQ(stopped.exit_code, 0) << stopped.errors;
  EXPECT_THAT(stopped.errors, HasSubstr("resuming"));
  EXPECT_THAT(stopped.errors, HasSubstr("the same command goes on where it stopped"));
  EXPECT_THAT(stopped.output, HasSubstr("only causal is trained"));
  const std::vector<std::string> first = lines();
  ASSERT_EQ(first.size(), 2u);
  const ProgramResult last = study("document-mask", {"--steps", "400"});
  ASSERT_EQ(last.exit_code, 0) << last.errors;
  EXPECT_THAT(last.errors, HasSubstr("causal, seed 1: done before"));
  EXPECT_THAT(last.errors, HasSubstr("resuming"));
  EXPECT_THAT(last.output, HasSubstr("result: all tokens: "));
  ASSERT_EQ(lines().size(), 3u);
  EXPECT_EQ(lines()[1], first[1]);
  for (const char* variant : {"causal", "document"}) {
    const std::vector<int64_t> steps = steps_of(variant);
    ASSERT_EQ(steps.size(), 400u) << variant;
    for (int64_t i = 0; i < 400; ++i) EXPECT_EQ(steps[size_t(i)], i + 1) << variant;
  }
  for (const char* name : {"study.csv", "study.json", "report.html", "report_variants_position.svg",
                           "report_runs_history_1.svg", "report_variants_difference.svg"}) {
    EXPECT_TRUE(fs::exists(folder / "s" / name)) << name;
  }
  // Other settings are refused, and the report can be drawn again.
  const ProgramResult other = study("document-mask", {"--steps", "3"});
  EXPECT_EQ(other.exit_code, 1);
  EXPECT_THAT(other.errors, HasSubstr("another config: \"steps = 400\" there, \"steps = 3\" here"));
  const ProgramResult page =
      run_program(RINGLET_PROGRAM, {"report", "s", "-o", "again.html"}, folder);
  EXPECT_EQ(page.exit_code, 0) << page.errors;
  EXPECT_THAT(file_text(folder / "again.html"), HasSubstr("all tokens: "));
}

// At every length the study scores what the run's own evaluation scores: the same tokens of one
// document.
TEST_F(StudyTest, ScoresAreThoseOfTheRunsOwnEvaluation) {
  const ProgramResult result =
      study("context", {"--set", "data.validation=" + novel, "--set", "train.steps=4", "--set",
                        "train.warmup_steps=1", "--set", "train.eval_every=4", "--json"});
  ASSERT_EQ(result.exit_code, 0) << result.errors;
  const auto json = nlohmann::json::parse(result.output);
  ASSERT_EQ(json["runs"].size(), 4u);
  for (const auto& run : json["runs"]) {
    std::ifstream stream(folder / "s" / "runs" / run["variant"].get<std::string>() /
                         "metrics.jsonl");
    std::string line;
    nlohmann::json evaluation;
    while (std::getline(stream, line)) evaluation = nlohmann::json::parse(line);
    ASSERT_EQ(evaluation["eval_tokens"], 16 * 128);
    EXPECT_NEAR(evaluation["eval_loss"].get<double>(), run["loss"].get<double>(), 1e-9);
    EXPECT_NEAR(evaluation["loss_last_quarter"].get<double>(),
                run["loss_last_quarter"].get<double>(), 1e-9);
    EXPECT_GT(run["step_ms"], 0);
    EXPECT_GT(run["peak_bytes"], 0);
  }
}

TEST_F(StudyTest, BadInputIsOneLineAndAdvice) {
  const auto expect = [&](const std::vector<std::string>& more, const std::string& name, int code,
                          const std::string& cause, const std::string& advice) {
    const ProgramResult result = study(name, more);
    EXPECT_EQ(result.exit_code, code) << cause;
    EXPECT_THAT(result.errors, HasSubstr(cause));
    EXPECT_THAT(result.errors, HasSubstr(advice));
    EXPECT_EQ(std::ranges::count(result.errors, '\n'), 2) << result.errors;
  };
  expect({}, "nonsense", 2, "there is no study 'nonsense'",
         "context, document-mask, rope-base, ring");
  expect({"--set", "data.corpus=" + novel}, "document-mask", 1, "holds one document",
         "prepare a folder of files");
  expect({"--set", "data.validation=", "--set", "train.eval_every=0"}, "ring", 2,
         "data.validation is empty", "--validation 0.1");
  expect({"--set", "memory.arena_bytes=1000"}, "ring", 1, "none of the 7 variants can be trained",
         "ringlet plan");
  expect({"--tokens", "x"}, "ring", 2, "\"x\" is not a number of tokens", "");
  expect({"--set", "run.comm=nccl"}, "ring", 2, "as threads", "run.comm");
  EXPECT_FALSE(fs::exists(folder / "s"));
  const ProgramResult help = run_program(RINGLET_PROGRAM, {"study", "--help"}, folder);
  EXPECT_EQ(help.exit_code, 0);
  for (const StudyKind& kind : study_kinds()) EXPECT_THAT(help.output, HasSubstr(kind.question));
  const ProgramResult alone = run_program(RINGLET_PROGRAM, {"study", "nonsense"}, folder);
  EXPECT_THAT(alone.errors, HasSubstr("the studies are context"));
}

}  // namespace
}  // namespace ringlet::test
