// How a study compares models, what it says of them, and the file that it goes on with.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>
#include <set>

#include "kernels/check.h"
#include "tests/support/training_case.h"
#include "train/quantile.h"
#include "train/study/comparison.h"

namespace ringlet::test {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

BlockedLoss blocks_of(std::vector<double> tokens, std::vector<double> losses) {
  BlockedLoss blocks;
  blocks.tokens = std::move(tokens);
  blocks.losses = std::move(losses);
  return blocks;
}

TEST(BlockedLoss, WhatBlocksHaveInCommonIsNoError) {
  const BlockedLoss a = blocks_of({10, 20, 10}, {30, 20, 50}),
                    b = blocks_of({10, 20, 10}, {29, 18, 49});
  EXPECT_DOUBLE_EQ(a.mean(), 2.5);
  EXPECT_GT(a.standard_error(), 0.5);
  const LossDifference by = difference(a, b);
  EXPECT_NEAR(by.value, 0.1, 1e-12);
  EXPECT_NEAR(by.standard_error, 0, 1e-12);  // each token is worse by 0.1
  EXPECT_TRUE(std::isnan(difference(blocks_of({10}, {30}), blocks_of({10}, {20})).standard_error));
  EXPECT_THROW(difference(a, blocks_of({1}, {1})), Error);
  EXPECT_DOUBLE_EQ(mean_of(std::vector{a, b}).mean(), 2.45);
}

// The error that a study states is how far its differences scatter when the text is another one.
TEST(BlockedLoss, TheErrorIsTheScatterOverTexts) {
  std::mt19937_64 random(7);
  std::normal_distribution<double> normal;
  std::vector<double> values, errors;
  for (int text = 0; text < 2000; ++text) {
    BlockedLoss a(30), b(30);
    for (size_t i = 0; i < 30; ++i) {
      const double hard = normal(random);  // for both
      a.tokens[i] = 50 + 10 * double(i % 3);
      b.tokens[i] = 40;
      a.losses[i] = a.tokens[i] * (2 + hard + 0.1 * normal(random));
      b.losses[i] = b.tokens[i] * (2 + hard + 0.2 * normal(random));
    }
    const LossDifference by = difference(a, b);
    values.push_back(by.value);
    errors.push_back(by.standard_error);
  }
  const double middle = mean(values);
  double squares = 0;
  for (const double value : values) squares += std::pow(value - middle, 2);
  EXPECT_NEAR(mean(errors) / std::sqrt(squares / 1999), 1, 0.07);
}

/// A run with losses of its own on four blocks of 100 tokens.
VariantRun made_up(const std::string& variant, int64_t seed, double loss,
                   double step_difference = NAN) {
  VariantRun run;
  run.variant = variant;
  run.seed = seed;
  run.layout = "zigzag";
  run.mask = "causal";
  run.steps = 7;
  run.seq_len = 100;
  for (int block = 0; block < 4; ++block) {
    // What is hard for one is hard for all; the rest differs a little.
    const double hard = 0.5 * block, own = 0.001 * ((block + int(variant.size()) + int(seed)) % 3);
    run.all.tokens.push_back(100);
    run.all.losses.push_back(100 * (loss + hard + own));
    run.last_block_quarter.tokens.push_back(25);
    run.last_block_quarter.losses.push_back(25 * (loss + hard + 2 * own - 0.2));
  }
  run.first_block_quarter = run.last_block_quarter;
  run.loss = run.all.mean();
  run.last_quarter = run.last_block_quarter.mean();
  run.by_position = {{0, 1}, {0, 1}, {4, 4}, {3, 2}, {0.1, NAN}};
  run.by_distance = run.by_position;
  run.step_loss_difference = step_difference;
  return run;
}

RunsOfStudy made_up_study(const char* name, const std::string& reference,
                          const std::vector<VariantRun>& runs) {
  RunsOfStudy study{
      {{"study", name}, {"reference", reference}, {"first_seed", "1"}, {"model", "m"}}, runs};
  std::set<std::string> names;
  for (const VariantRun& run : runs) {
    if (names.insert(run.variant).second) study.settings["variants"] += run.variant + ": a=b\n";
  }
  return study;
}

TEST(StudyResult, StatesTheBestWithItsError) {
  VariantRun failed = made_up("T_400", 1, 1);
  failed.status = RunStatus::failed;
  failed.reason = "it is \"said\", with a comma";
  const StudyResult study = make_result(made_up_study(
      "context", "T_100",
      {made_up("T_100", 1, 2.0), made_up("T_200", 1, 1.9), made_up("T_300b", 1, 1.9), failed}));
  EXPECT_THAT(result_text(study),
              HasSubstr("all tokens: T_200 beats T_100 by 0.1000 +- 0.0000 nats per token"));
  EXPECT_THAT(result_text(study), HasSubstr("last quarter of the window: T_200 beats T_100"));
  EXPECT_THAT(result_text(study), HasSubstr("within two errors of the best: T_300b"));
  EXPECT_THAT(result_text(study), HasSubstr("400 validation tokens, 1 seed"));
  const std::string text = to_text(study);
  EXPECT_THAT(text, HasSubstr("T_400 (seed 1): failed: it is"));
  EXPECT_THAT(text, HasSubstr("-0.1000 +- 0.0000"));
  const std::string csv = to_csv(study.runs);
  EXPECT_EQ(std::ranges::count(csv, '\n'), 5);
  EXPECT_THAT(csv,
              HasSubstr("T_400,1,failed,\"it is \"\"said\"\", with a comma\",zigzag,causal,100"));
  const auto json = to_json(study);
  EXPECT_EQ(json["runs"].size(), 4u);
  EXPECT_EQ(json["comparisons"].size(), 4u);
  EXPECT_NEAR(json["comparisons"][0]["difference"].get<double>(), -0.1, 1e-9);
  EXPECT_TRUE(json["comparisons"][0]["seed_error"].is_null());
}

TEST(StudyResult, TooSmallForItsErrorIsNoResult) {
  const StudyResult study = make_result(made_up_study(
      "rope-base", "bound", {made_up("bound", 1, 2.0), made_up("bound_x10", 1, 1.9999)}));
  EXPECT_THAT(
      result_text(study),
      HasSubstr("cannot be told apart: 0.000"));
  EXPECT_THAT(
      result_text(make_result(made_up_study("rope-base", "bound", {made_up("bound", 1, 2.0)}))),
      HasSubstr("only bound is trained"));
}

// The same differences on the text, but other ones with each seed: the error is that of the seeds.
TEST(StudyResult, SeedsThatDisagreeWidenTheError) {
  const StudyResult study =
      make_result(made_up_study("document-mask", "causal",
                                {made_up("causal", 1, 2.0), made_up("document", 1, 1.8),
                                 made_up("causal", 2, 2.0), made_up("document", 2, 2.0)}));
  const VariantDifference by =
      difference(*study.find("causal"), *study.find("document"), Measure::all);
  EXPECT_NEAR(by.value, 0.1, 1e-3);
  EXPECT_NEAR(by.seed_error, 0.1, 1e-3);
  EXPECT_EQ(by.seeds, 2);
  EXPECT_TRUE(by.is_lost_in_error());
  EXPECT_THAT(to_text(study), HasSubstr("seeds' deviation"));
}

TEST(StudyResult, NobodyWinsWhereNothingDiffers) {
  VariantDifference none;
  none.value = none.evaluation_error = 0;
  EXPECT_TRUE(none.is_lost_in_error());
}

TEST(StudyResult, RingsStateTheLargestDifference) {
  const StudyResult study =
      make_result(made_up_study("ring", "1_rank",
                                {made_up("1_rank", 1, 2, 0), made_up("2_zigzag", 1, 2, 3e-7),
                                 made_up("4_contiguous", 1, 2, 0)}));
  EXPECT_THAT(result_text(study),
              HasSubstr("the losses of 7 steps differ from those of 1_rank by at most 3.0e-07"));
  EXPECT_THAT(result_text(study), HasSubstr("(2_zigzag)"));
  EXPECT_THAT(result_text(study), HasSubstr("equal in every bit: 4_contiguous"));
}

TEST(VariantsFile, GoesOnBehindTheLastWholeLine) {
  const TemporaryFolder folder;
  const fs::path path = folder.path() / "s";
  const StudySettings settings{{"study", "ring"}, {"config", "a = 1\nb = 2\n"}};
  {
    VariantsFile file(path, settings);
    file.append(made_up("1_rank", 1, 2));
  }
  std::ofstream(variants_path(path), std::ios::app) << R"({"variant":"2_zig)";
  const RunsOfStudy read = read_variants(path);
  ASSERT_EQ(read.runs.size(), 1u);
  EXPECT_EQ(to_json(read.runs[0]), to_json(made_up("1_rank", 1, 2)));
  {
    VariantsFile file(path, settings);
    EXPECT_TRUE(file.is_settled("1_rank", 1));
    EXPECT_FALSE(file.is_settled("1_rank", 2));
    EXPECT_FALSE(file.is_settled("2_zigzag", 1));
  }
  {
    VariantsFile file(path, settings);
    VariantRun failed = made_up("2_zigzag", 1, 2);
    failed.status = RunStatus::failed;
    file.append(failed);
    EXPECT_FALSE(file.is_settled("2_zigzag", 1));
    file.append(made_up("2_zigzag", 1, 3));
    EXPECT_TRUE(file.is_settled("2_zigzag", 1));
  }
  const RunsOfStudy again = read_variants(path);
  ASSERT_EQ(again.runs.size(), 2u);
  EXPECT_EQ(to_json(again.runs[1]), to_json(made_up("2_zigzag", 1, 3)));
  EXPECT_THROW(read_study(path), Error);  // without its first seed
  try {
    VariantsFile file(path, {{"study", "ring"}, {"config", "a = 1\nb = 3\n"}});
    ADD_FAILURE() << "other settings were taken";
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), HasSubstr("another config: \"b = 2\" there, \"b = 3\" here"));
  }
}

}  // namespace
}  // namespace ringlet::test
