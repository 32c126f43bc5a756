#include "train/metrics.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <limits>
#include <nlohmann/json.hpp>

#include "train/console.h"

namespace ringlet {
namespace {

using Json = nlohmann::json;
constexpr double kNotFinite = std::numeric_limits<double>::quiet_NaN();
constexpr double kInfinity = std::numeric_limits<double>::infinity();

MetricsRecord sample_record() {
  MetricsRecord record;
  record.step = 12;
  record.steps = 1000;
  record.loss = 1.9134;
  record.loss_first_quarter = 2.31;
  record.loss_last_quarter = 1.78;
  PositionBins bins(4);
  for (int64_t i = 0; i < 6; ++i) bins.add(i % 3, i % 3 / 2, 1.0 + double(i));
  record.loss_by_position = bins.by_position();
  record.loss_by_distance = bins.by_distance();
  record.learning_rate = 1e-3;
  record.gradient_norm = 0.52;
  record.tokens = 49152;
  record.tokens_per_second = 41234;
  record.step_ms = 100;
  record.compute_ms = {80, 40};
  record.exposed_ms = {10, 50};
  record.bubble_percent = {10, 50};
  record.peak_bytes = {1 << 20, 2 << 20};
  record.sent_bytes = {300, 400};
  return record;
}

TEST(Metrics, OneLineHasEveryKey) {
  const std::string line = to_json_line(sample_record());
  EXPECT_EQ(line.find('\n'), std::string::npos);
  const Json json = Json::parse(line);
  EXPECT_EQ(json["step"], 12);
  EXPECT_EQ(json["loss"], 1.9134);
  EXPECT_EQ(json["loss_first_quarter"], 2.31);
  EXPECT_EQ(json["loss_last_quarter"], 1.78);
  EXPECT_EQ(json["learning_rate"], 1e-3);
  EXPECT_EQ(json["gradient_norm"], 0.52);
  EXPECT_EQ(json["tokens"], 49152);
  EXPECT_EQ(json["tokens_per_second"], 41234);
  EXPECT_EQ(json["skipped_steps"], 0);
  EXPECT_EQ(json["data_wait_ms"], 0);
  EXPECT_EQ(json["compute_ms"], Json({80, 40}));
  EXPECT_EQ(json["exposed_ms"], Json({10, 50}));
  EXPECT_EQ(json["bubble_percent"], Json({10, 50}));
  EXPECT_DOUBLE_EQ(json["imbalance"], 80.0 / 60.0);
  EXPECT_EQ(json["peak_bytes"], Json({1 << 20, 2 << 20}));
  EXPECT_EQ(json["sent_bytes"], Json({300, 400}));
  EXPECT_FALSE(json.contains("non_finite"));
}

// A GPU computes by itself: the processor's time says nothing.
TEST(Metrics, ComputeThatNobodyTimedIsNotThere) {
  MetricsRecord record = sample_record();
  record.compute_ms = {};
  const Json json = Json::parse(to_json_line(record));
  EXPECT_FALSE(json.contains("compute_ms"));
  EXPECT_FALSE(json.contains("imbalance"));
  EXPECT_TRUE(json.contains("exposed_ms"));
}

TEST(Metrics, LossByPositionIsParallelLists) {
  const Json json = Json::parse(to_json_line(sample_record()))["loss_by_position"];
  EXPECT_EQ(json["first"], Json({0, 1, 2}));
  EXPECT_EQ(json["last"], Json({0, 1, 3}));
  EXPECT_EQ(json["count"], Json({2, 2, 2}));
  EXPECT_EQ(json["mean"], Json({2.5, 3.5, 4.5}));
  EXPECT_EQ(json["standard_error"].size(), 3u);
  for (const Json& error : json["standard_error"]) EXPECT_NEAR(error.get<double>(), 1.5, 1e-12);
}

TEST(Metrics, LossByDistanceHasTheSameShape) {
  const Json json = Json::parse(to_json_line(sample_record()))["loss_by_distance"];
  EXPECT_EQ(json["first"], Json({0, 1, 2}));
  EXPECT_EQ(json["last"], Json({0, 1, 3}));
  EXPECT_EQ(json["count"], Json({4, 2, 0}));
  EXPECT_EQ(json["mean"], Json({3.0, 4.5, nullptr}));  // 1, 2, 4, 5; 3, 6
  EXPECT_NEAR(json["standard_error"][0].get<double>(), std::sqrt(10.0 / 3 / 4), 1e-12);
  EXPECT_NEAR(json["standard_error"][1].get<double>(), 1.5, 1e-12);
  EXPECT_TRUE(json["standard_error"][2].is_null());
}

TEST(Metrics, TheInContextScoreIsAbsentOrThreeKeys) {
  MetricsRecord record = sample_record();
  EXPECT_FALSE(to_json_line(record).find("in_context") != std::string::npos);
  record.in_context_score = InContextScore{{10, 4.0, 0.3}, {50, 1.5, 0.4}};
  EvalRecord evaluation{7, PositionBins(1000)};
  EXPECT_FALSE(to_json_line(evaluation).find("in_context") != std::string::npos);
  for (int64_t p = 0; p < 1000; ++p) evaluation.bins.add(p, p, p < 300 ? 4.0 : 1.5);
  for (const std::string& line : {to_json_line(record), to_json_line(evaluation)}) {
    const Json json = Json::parse(line);
    EXPECT_EQ(json["in_context_score"], -2.5);
    EXPECT_EQ(json["in_context_tokens"], Json({10, 50}));
  }
  EXPECT_EQ(Json::parse(to_json_line(record))["in_context_standard_error"], 0.5);
  EXPECT_EQ(Json::parse(to_json_line(evaluation))["in_context_standard_error"], 0.0);
}

TEST(Metrics, NumbersReadBackToTheSameBits) {
  MetricsRecord record = sample_record();
  record.loss = 1.0 / 3;
  record.gradient_norm = 1e-300;
  const Json json = Json::parse(to_json_line(record));
  EXPECT_EQ(json["loss"].get<double>(), 1.0 / 3);
  EXPECT_EQ(json["gradient_norm"].get<double>(), 1e-300);
}

TEST(Metrics, ValuesThatAreNotFiniteBecomeNullAndAreNamed) {
  MetricsRecord record = sample_record();
  record.loss = kNotFinite;
  record.gradient_norm = kInfinity;
  record.tokens_per_second = -kInfinity;
  record.compute_ms[1] = kNotFinite;
  PositionBins bins(2);
  bins.add(0, 0, kNotFinite);
  bins.add(0, 0, 1);
  record.loss_by_position = bins.by_position();
  const Json json = Json::parse(to_json_line(record));
  EXPECT_TRUE(json["loss"].is_null());
  EXPECT_TRUE(json["gradient_norm"].is_null());
  EXPECT_TRUE(json["compute_ms"][1].is_null());
  EXPECT_EQ(json["compute_ms"][0], 80);
  EXPECT_THAT(json["non_finite"].get<std::vector<std::string>>(),
              testing::UnorderedElementsAre("loss", "gradient_norm", "tokens_per_second",
                                            "compute_ms", "imbalance", "loss_by_position"));
}

TEST(Metrics, EmptyBinsAreNullWithoutAWarning) {
  EvalRecord record{7, PositionBins(8)};
  record.bins.add(0, 0, 1.5);
  record.bins.add(7, 0, 2.5);
  const Json json = Json::parse(to_json_line(record));
  EXPECT_EQ(json["step"], 7);
  EXPECT_EQ(json["eval_loss"], 2.0);
  EXPECT_EQ(json["eval_tokens"], 2);
  EXPECT_EQ(json["eval_standard_error"], 0.5);
  EXPECT_EQ(json["loss_first_quarter"], 1.5);
  EXPECT_EQ(json["loss_last_quarter"], 2.5);
  EXPECT_EQ(json["loss_by_position"]["mean"], Json({1.5, nullptr, nullptr, 2.5}));
  EXPECT_EQ(json["loss_by_distance"]["mean"], Json({2.0, nullptr, nullptr, nullptr}));
  EXPECT_FALSE(json.contains("non_finite"));
}

// Samples whose answers stand at the end: no token of the first quarter counts.
TEST(Metrics, QuartersWithoutTokensAreNoWarning) {
  EvalRecord record{7, PositionBins(8)};
  record.bins.add(7, 7, 2.5);
  record.bins.add(6, 6, 2.5);
  const Json json = Json::parse(to_json_line(record));
  EXPECT_TRUE(json["loss_first_quarter"].is_null());
  EXPECT_EQ(json["loss_last_quarter"], 2.5);
  EXPECT_FALSE(json.contains("non_finite"));
  MetricsRecord step = sample_record();
  step.loss_first_quarter = kNotFinite;
  EXPECT_EQ(progress_text(step, -1).find("1/4"), std::string::npos);
  EXPECT_FALSE(Json::parse(to_json_line(step)).contains("non_finite"));
  step.loss = kNotFinite;
  EXPECT_NE(progress_text(step, -1).find("(first 1/4 nan"), std::string::npos);
  EXPECT_EQ(Json::parse(to_json_line(step))["non_finite"], Json({"loss", "loss_first_quarter"}));
}

TEST(Metrics, EvenRanksHaveNoImbalance) {
  MetricsRecord record;
  EXPECT_EQ(record.imbalance(), std::nullopt);
  record.compute_ms = {50, 50, 50};
  EXPECT_EQ(record.imbalance(), 1);
}

TEST(Console, NumbersForPeople) {
  EXPECT_EQ(human_count(0), "0");
  EXPECT_EQ(human_count(999), "999");
  EXPECT_EQ(human_count(999.9), "1.0k");
  EXPECT_EQ(human_count(41234), "41.2k");
  EXPECT_EQ(human_count(999'960), "1.0M");
  EXPECT_EQ(human_count(123'456'789), "123M");
  EXPECT_EQ(human_bytes(1023), "1023 B");
  EXPECT_EQ(human_bytes(1024), "1.0 KiB");
  EXPECT_EQ(human_bytes(512), "512 B");
  EXPECT_EQ(human_bytes(1.5 * (1 << 30)), "1.5 GiB");
  EXPECT_EQ(human_seconds(0.4), "0s");
  EXPECT_EQ(human_seconds(192), "3m12s");
  EXPECT_EQ(human_seconds(59.6), "1m00s");
  EXPECT_EQ(human_seconds(7260), "2h01m");
  EXPECT_EQ(human_seconds(90000), "1d01h");
  EXPECT_EQ(human_seconds(kNotFinite), "?");
}

TEST(Console, ProgressTellsWhatMatters) {
  EXPECT_EQ(progress_text(sample_record(), 192),
            "[12/1000] loss 1.913 (first 1/4 2.31, last 1/4 1.78) lr 0.001 norm 0.52 "
            "41.2k tokens/s ETA 3m12s");
  EXPECT_EQ(progress_text(sample_record(), -1).find("ETA"), std::string::npos);
  MetricsRecord staged = sample_record();
  staged.stage = 2;
  EXPECT_TRUE(progress_text(staged, 192).ends_with("tokens/s ETA of stage 2 3m12s"));
}

TEST(Console, TablesAlignTheirColumns) {
  EXPECT_EQ(format_table({{"position", "loss"}, {"0", "5.5"}, {"1-2", "10.25"}}),
            "position   loss\n"
            "0           5.5\n"
            "1-2       10.25\n");
}

TEST(Console, WithoutATerminalEveryStepIsAPlainLine) {
  char* text = nullptr;
  size_t size = 0;
  std::FILE* stream = open_memstream(&text, &size);
  {
    Console console(stream);
    console.say("hello");
    console.progress(sample_record());
  }
  std::fclose(stream);
  const std::string printed(text, size);
  std::free(text);
  EXPECT_EQ(printed, "hello\n" + progress_text(sample_record(), 98.8) + "\n");
  EXPECT_EQ(printed.find_first_of("\r\x1b"), std::string::npos);
}

}  // namespace
}  // namespace ringlet
