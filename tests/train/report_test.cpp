// Plots, pages and `ringlet report`.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <regex>

#include "kernels/check.h"
#include "tests/support/program.h"
#include "tests/support/training_case.h"
#include "train/metrics.h"
#include "train/report/html.h"
#include "train/report/run_report.h"

namespace ringlet::test {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::Not;

TEST(Plot, TicksAreRoundNumbersAroundTheValues) {
  EXPECT_THAT(round_ticks(AxisScale::linear, 0, 10), ElementsAre(0, 2, 4, 6, 8, 10));
  EXPECT_THAT(round_ticks(AxisScale::linear, -3, 26), ElementsAre(-5, 0, 5, 10, 15, 20, 25, 30));
  EXPECT_THAT(round_ticks(AxisScale::linear, 1.61, 1.64),
              ElementsAre(testing::DoubleNear(1.61, 1e-9), testing::DoubleNear(1.615, 1e-9), testing::DoubleNear(1.62, 1e-9),
                          testing::DoubleNear(1.625, 1e-9), testing::DoubleNear(1.63, 1e-9),
                          testing::DoubleNear(1.635, 1e-9), testing::DoubleNear(1.64, 1e-9)));
  EXPECT_THAT(round_ticks(AxisScale::logarithmic, 3e-8, 2e-4), testing::SizeIs(6));
  EXPECT_THAT(round_ticks(AxisScale::logarithmic, 30, 400), ElementsAre(20, 50, 100, 200, 500));
  EXPECT_THAT(round_ticks(AxisScale::logarithmic, 10, 100), ElementsAre(10, 20, 50, 100));
}

Plot plot_of(std::vector<double> x, std::vector<double> y) {
  Plot plot{"A title", {.label = "x"}, {.label = "y", .scale = AxisScale::logarithmic}, {}};
  plot.lines.push_back({.label = "line", .x = std::move(x), .y = std::move(y), .column = "line"});
  return plot;
}

int64_t count_of(const std::string& text, const std::string& part) {
  int64_t count = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++count;
  return count;
}

TEST(Plot, LeavesOutWhatAnAxisDoesNotHave) {
  const Plot plot = plot_of({1, 2, 3, 4}, {10, 0, NAN, 1000});
  const std::string svg = to_svg(plot);
  EXPECT_EQ(count_of(svg, "<path"), 2 + 1);  // two points and the legend
  EXPECT_THAT(svg, Not(HasSubstr("nan")));
  EXPECT_FALSE(has_points(plot_of({1}, {-1})));
  EXPECT_THROW(to_svg(plot_of({1}, {-1})), Error);
  EXPECT_THAT(to_svg(plot_of({1}, {5})), Not(HasSubstr("nan")));  // one point
}

// The ends of the values are inside the frame, and lines rise where values do.
TEST(Plot, PointsStandWhereTheirValuesAre) {
  const std::string svg = to_svg(plot_of({0, 1, 2}, {10, 100, 1000}));
  const std::regex place("translate\\(([0-9.]+) ([0-9.]+)\\)");
  std::vector<double> x, y;
  for (auto it = std::sregex_iterator(svg.begin(), svg.end(), place); it != std::sregex_iterator(); ++it) {
    x.push_back(std::stod((*it)[1]));
    y.push_back(std::stod((*it)[2]));
  }
  ASSERT_EQ(x.size(), 4u);
  EXPECT_NEAR(x[1] - x[0], x[2] - x[1], 0.11);
  EXPECT_NEAR(y[1] - y[0], y[2] - y[1], 0.11);
  EXPECT_LT(y[2], y[0]);
}

TEST(Plot, ATableHasARowForEachX) {
  Plot plot = plot_of({1, 2}, {10, 20});
  plot.lines.push_back({.label = "other", .x = {2, 3}, .y = {0.5, NAN}, .column = "other"});
  plot.lines.push_back({.label = "a curve", .x = {1.5}, .y = {1}});
  EXPECT_EQ(table_of(plot), (std::vector<std::vector<std::string>>{
                                {"x", "line", "other"}, {"1", "10", ""}, {"2", "20", "0.5"}, {"3", "", ""}}));
}

TEST(Html, EverythingFromOutsideIsEscaped) {
  EXPECT_EQ(escaped("<a href='x'>&\"\x01"), "&lt;a href=&#39;x&#39;&gt;&amp;&quot;");
  const TemporaryFolder folder;
  const std::string evil = "<script>alert('1')</script>";
  HtmlPage page(evil);
  page.heading(evil);
  page.paragraph(evil);
  page.lines(evil);
  page.table({{evil}, {evil}});
  Plot plot = plot_of({1, 2}, {10, 20});
  plot.title = plot.x.label = plot.y.label = evil;
  plot.lines[0].label = plot.lines[0].column = plot.lines[0].end_note = evil;
  page.figure(plot, "p", evil);
  page.write(folder.path() / "page.html");
  for (const char* name : {"page.html", "page_p.svg"}) {
    EXPECT_THAT(file_text(folder.path() / name), Not(HasSubstr("<script"))) << name;
    EXPECT_THAT(file_text(folder.path() / name), HasSubstr("&lt;script&gt;")) << name;
  }
}

/// A run's folder with `steps` steps and an evaluation.
std::filesystem::path make_run(const TemporaryFolder& folder, const std::string& name, int64_t steps) {
  const std::filesystem::path run = folder.path() / name;
  std::filesystem::create_directory(run);
  std::ofstream metrics(run / "metrics.jsonl");
  PositionBins bins(64);
  for (int64_t p = 0; p < 64; ++p) bins.add(p, p, 4 - 0.01 * double(p));
  for (int64_t step = 1; step <= steps; ++step) {
    MetricsRecord record;
    record.step = step;
    record.steps = steps;
    record.loss = 5 - 0.001 * double(step);
    record.loss_by_position = bins.by_position();
    record.tokens_per_second = 1000;
    record.peak_bytes = {1000, 2000};
    metrics << to_json_line(record) << '\n';
  }
  metrics << to_json_line(EvalRecord{steps, bins}) << '\n';
  return run;
}

TEST(RunReport, ReadsWhatTrainingWrote) {
  const TemporaryFolder folder;
  const std::filesystem::path path = make_run(folder, "a", 5);
  std::ofstream(path / "metrics.jsonl", std::ios::app) << R"({"step":6,"lo)";  // killed
  const RunMetrics run = read_run(path);
  EXPECT_EQ(run.name, "a");
  EXPECT_EQ(run.steps, 5);
  EXPECT_THAT(run.loss.steps, ElementsAre(1, 2, 3, 4, 5));
  EXPECT_DOUBLE_EQ(run.loss.values[4], 4.995);
  EXPECT_THAT(run.validation_loss.steps, ElementsAre(5));
  EXPECT_EQ(run.by_position.source, "validation after step 5");
  EXPECT_EQ(run.by_position.positions.back(), 64);
  EXPECT_DOUBLE_EQ(run.by_position.losses[0], 4);
  EXPECT_THAT(run.peak_bytes, ElementsAre(1000, 2000));
  EXPECT_TRUE(run.predicted_peak_bytes.empty());
  const Config config = tiny_training(make_corpus(folder, 2), 2, 2);
  std::ofstream(path / "config.toml") << to_toml(config);
  EXPECT_EQ(read_run(path).predicted_peak_bytes.size(), 2u);
  std::filesystem::remove(config.data.corpus);  // and with it the vocabulary
  EXPECT_TRUE(read_run(path).predicted_peak_bytes.empty());
}

TEST(RunReport, LongRunsAreThinned) {
  StepSeries series;
  for (int i = 1; i <= 1000; ++i) {
    series.steps.push_back(i);
    series.values.push_back(2 * i);
  }
  const StepSeries few = thinned(series, 100);
  ASSERT_EQ(few.steps.size(), 100u);
  EXPECT_EQ(few.steps[0], 10);
  EXPECT_EQ(few.values[0], 11);
  EXPECT_EQ(thinned(series, 1000).values, series.values);
  series.values[0] = NAN;  // a step that was skipped hides no other
  EXPECT_EQ(thinned(series, 100).values[0], 12);
}

TEST(ReportCommand, ComparesRunsOnOnePage) {
  const TemporaryFolder folder;
  make_run(folder, "a&b", 3);
  make_run(folder, "other", 300);
  const ProgramResult result = run_program(RINGLET_PROGRAM, {"report", "a&b", "other", "-o", "both.html"}, folder.path());
  ASSERT_EQ(result.exit_code, 0) << result.errors;
  const std::string page = file_text(folder.path() / "both.html");
  EXPECT_THAT(page, HasSubstr("a&amp;b, training"));
  EXPECT_THAT(page, HasSubstr("other, validation"));
  EXPECT_THAT(page, Not(HasSubstr("a&b")));
  EXPECT_THAT(page, Not(HasSubstr("<script")));
  EXPECT_THAT(page, Not(testing::ContainsRegex("(src|href)=")));  // nothing is loaded
  for (const char* plot : {"loss", "position", "speed", "memory"}) {
    EXPECT_TRUE(std::filesystem::exists(folder.path() / (std::string("both_") + plot + ".svg"))) << plot;
  }
}

TEST(ReportCommand, BadInputIsOneLineAndAdvice) {
  const TemporaryFolder folder;
  const auto expect = [&](const std::string& cause, const std::string& advice) {
    const ProgramResult result = run_program(RINGLET_PROGRAM, {"report", "r"}, folder.path());
    EXPECT_EQ(result.exit_code, 1);
    EXPECT_THAT(result.errors, HasSubstr(cause));
    EXPECT_THAT(result.errors, HasSubstr(advice));
    EXPECT_EQ(std::ranges::count(result.errors, '\n'), 2) << result.errors;
  };
  expect("has neither metrics.jsonl", "give a run's folder");
  std::filesystem::create_directory(folder.path() / "r");
  write_text(folder.path() / "r" / "metrics.jsonl", "");
  expect("metrics.jsonl holds no step", "train the run first");
  write_text(folder.path() / "r" / "metrics.jsonl", "{\"step\":1}\n");
  expect("line 1 of", "delete that line");
  write_text(folder.path() / "r" / "metrics.jsonl", "[1]\nnot json\n");
  expect("line 1 of", "delete that line");
}

}  // namespace
}  // namespace ringlet::test
