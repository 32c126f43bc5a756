// `ringlet scale`: cells, what is worked out of them, and the folder that it goes on with.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "kernels/check.h"
#include "tests/support/program.h"
#include "tests/support/training_case.h"
#include "train/quantile.h"
#include "train/scale/study.h"
#include "train/units.h"

namespace ringlet::test {
namespace {

using testing::HasSubstr;

const std::string kTiny = RINGLET_SOURCE_DIR "/configs/tiny.toml";

std::vector<std::string> lines_of(const std::filesystem::path& path) {
  std::ifstream stream(path);
  std::vector<std::string> lines;
  for (std::string line; std::getline(stream, line);) lines.push_back(line);
  return lines;
}

TEST(Fit, FindsTheCoefficientsOfExactPoints) {
  const std::vector<double> x{1024, 2048, 4096, 16384, 65536};
  std::vector<double> y;
  for (const double t : x) y.push_back(5 + 0.02 * t + 3e-7 * t * t);
  const PolynomialFit fit = fit_polynomial(x, y, 3);
  ASSERT_EQ(fit.coefficients.size(), 3u);
  EXPECT_NEAR(fit.coefficients[0], 5, 1e-6);
  EXPECT_NEAR(fit.coefficients[1], 0.02, 1e-10);
  EXPECT_NEAR(fit.coefficients[2], 3e-7, 1e-15);
  EXPECT_LT(fit.largest_residual(), 1e-10);
  EXPECT_EQ(fit.not_positive(), "");
  EXPECT_NEAR(fit.at(8192), 5 + 0.02 * 8192 + 3e-7 * 8192 * 8192, 1e-6);
}

// Points of very different size count alike: the constant that fits 1 and 100 relatively best is near 1, not 50.
TEST(Fit, WeighsByRelativeError) {
  const PolynomialFit fit = fit_polynomial({1, 2}, {1, 100}, 1);
  EXPECT_NEAR(fit.coefficients[0], 1.01 / 1.0001, 1e-9);
  EXPECT_NEAR(fit.residuals[0], 1.01 / 1.0001 - 1, 1e-9);
  EXPECT_NEAR(fit.largest_residual(), 1 - 1.01 / 1.0001 / 100, 1e-9);
}

TEST(Fit, NamesWhatIsNotPositiveAndNeedsEnoughPoints) {
  EXPECT_EQ(fit_polynomial({1, 2, 3}, {3, 2, 3}, 3).not_positive(), "b");  // 6 - 4 x + x^2
  EXPECT_EQ(fit_polynomial({1, 2}, {1, 3}, 2).not_positive(), "a");
  EXPECT_TRUE(fit_polynomial({1, 2}, {1, 3}, 3).coefficients.empty());
  EXPECT_TRUE(fit_polynomial({2, 2, 2}, {1, 3, 4}, 3).coefficients.empty());
}

TEST(Quantiles, StandBetweenValues) {
  EXPECT_EQ(quantile({3, 1, 2}, 0.5), 2);
  EXPECT_EQ(quantile({4, 1, 2, 3}, 0.5), 2.5);
  EXPECT_DOUBLE_EQ(quantile({0, 10}, 0.9), 9);
  EXPECT_TRUE(std::isnan(quantile({}, 0.5)));
}

TEST(Lengths, AreReadAndWritten) {
  EXPECT_EQ(parse_tokens("4k"), 4096);
  EXPECT_EQ(parse_tokens("1M"), 1 << 20);
  EXPECT_EQ(parse_tokens("1000"), 1000);
  for (const char* wrong : {"", "k", "0", "-1", "1.5k", "2x", "1kk", "99999999999999999M"}) {
    EXPECT_THROW(parse_tokens(wrong), UsageError) << wrong;
  }
  EXPECT_EQ(length_text(4096), "4k");
  EXPECT_EQ(length_text(1000), "1000");
}

/// A measured cell by the numbers that others are compared with.
Cell cell_of(int64_t seq_len, int64_t ranks, double step_ms, double flops) {
  Cell cell;
  cell.seq_len = seq_len;
  cell.ranks = ranks;
  cell.ring = double(ranks);
  cell.tokens_per_rank = double(seq_len / ranks);
  cell.cores = double(std::min<int64_t>(ranks, 2));
  cell.step_ms = step_ms;
  cell.step_samples_ms = {step_ms};
  cell.model_flops = flops;
  cell.attention_ms = step_ms / double(2 * ranks);
  cell.ring_wait_ms = 0;
  cell.peak_bytes = 1000 + 10 * double(seq_len / ranks);
  return cell;
}

TEST(Study, EfficienciesAreFlopsOfACoreBesideTheFewestRanks) {
  CellsOfStudy read{{{"mode", "strong"}}, {cell_of(400, 4, 80, 1e6), cell_of(400, 1, 100, 1e6), cell_of(400, 2, 60, 1e6),
                                           cell_of(100, 1, 20, 1e5), cell_of(200, 1, 45, 3e5)}};
  const Study study = make_study(read);
  ASSERT_EQ(study.cells.size(), 5u);
  EXPECT_EQ(study.cells[0].seq_len, 100);
  const Cell &two = study.cells[3], &four = study.cells[4];
  EXPECT_NEAR(two.strong_percent, 100 * 100 / (2 * 60.0), 1e-9);
  EXPECT_NEAR(four.strong_percent, 100 * 100 / (2 * 80.0), 1e-9);  // four ranks on two cores
  EXPECT_NEAR(four.weak_percent, 100 * (1e6 / 80 / 2) / (1e5 / 20), 1e-9);
  EXPECT_NEAR(four.ideal_percent, 100 * (50 / 2.0) / (80 / 8.0), 1e-9);
  EXPECT_TRUE(std::isnan(study.cells[0].strong_percent));  // nothing to compare it with
  ASSERT_EQ(study.fits.size(), 3u);
  EXPECT_EQ(study.fits[0].lengths, (std::vector<double>{100, 200, 400}));
  ASSERT_EQ(study.fits[0].memory.size(), 1u);
  EXPECT_NEAR(study.fits[0].memory[0].fit.coefficients[0], 1000, 1e-6);
  EXPECT_NEAR(study.fits[0].memory[0].fit.coefficients[1], 10, 1e-9);
  EXPECT_TRUE(study.fits[1].time.coefficients.empty());
}

// What else the machine does only adds to a step: a slow half of the steps leaves the curve where it is.
TEST(Study, TimeIsFittedToTheFastestSteps) {
  std::vector<Cell> visits;
  for (const double seq_len : {100.0, 200.0, 400.0, 800.0}) {
    Cell cell = cell_of(int64_t(seq_len), 1, 1, 1e5);
    const double ms = 5 + 0.1 * seq_len + 1e-3 * seq_len * seq_len;
    cell.step_samples_ms = {ms, 2 * ms, ms, 1.5 * ms, ms, 3 * ms};
    visits.push_back(cell);
  }
  const PolynomialFit fit = make_study({{{"mode", "strong"}}, visits}).fits.at(0).time;
  ASSERT_EQ(fit.coefficients.size(), 3u);
  EXPECT_NEAR(fit.coefficients[0], 5, 1e-6);
  EXPECT_NEAR(fit.coefficients[1], 0.1, 1e-8);
  EXPECT_NEAR(fit.coefficients[2], 1e-3, 1e-10);
}

// Memory is the largest of several lines: each is fitted where it is.
TEST(Study, MemoryHasALineForEachMoment) {
  std::vector<Cell> visits;
  for (const int64_t seq_len : {100, 200, 400, 800, 1600}) {
    Cell cell = cell_of(seq_len, 2, 20, 1e5);
    const double share = double(seq_len) / 2;
    cell.peak_moment = 2000 + 10 * share > 30 * share ? "flat" : "steep";  // they meet at 100 tokens a rank
    cell.peak_bytes = std::max(2000 + 10 * share, 30 * share);
    visits.push_back(cell);
  }
  const FitsOfRanks fits = make_study({{{"mode", "strong"}}, visits}).fits.at(0);
  ASSERT_EQ(fits.memory.size(), 2u);
  EXPECT_EQ(fits.memory[0].lengths, (std::vector<double>{100}));
  EXPECT_TRUE(fits.memory[0].fit.coefficients.empty());
  EXPECT_EQ(fits.memory[1].lengths, (std::vector<double>{200, 400, 800, 1600}));
  EXPECT_NEAR(fits.memory[1].fit.coefficients[1], 30, 1e-9);
  EXPECT_LT(fits.memory[1].fit.largest_residual(), 1e-12);
  EXPECT_THAT(memory_fit_text(fits), testing::AllOf(HasSubstr("R = 2, 100, fullest in flat: one length"),
                                                    HasSubstr("R = 2, 200 to 1600, fullest in steep: a = ")));
}

TEST(Study, VisitsOfACellAreOne) {
  const auto visit = [](std::vector<double> samples, double exposed_ms, double gradient_error) {
    Cell cell = cell_of(100, 2, samples.front(), 1e6);
    cell.step_samples_ms = std::move(samples);
    cell.tokens_per_step = 100;
    cell.exposed_ms = exposed_ms;
    cell.gradient_error = gradient_error;
    cell.predicted_step_ms = 20;
    cell.predicted_ratio = 20 / cell.step_ms;  // of its own minute
    return cell;
  };
  Cell lost = cell_of(200, 2, NAN, 1e6);
  lost.status = CellStatus::failed;
  const std::vector<Cell> cells = merge_visits(
      std::vector{visit({10, 11}, 1, 1e-6), cell_of(200, 2, 50, 1e6), visit({90, 80, 12}, 9, NAN), visit({13, 14}, 2, NAN), lost});
  ASSERT_EQ(cells.size(), 2u);
  EXPECT_EQ(cells[0].steps, 7);
  EXPECT_EQ(cells[0].step_ms, 13);  // of all steps: a slow visit does not count by itself
  EXPECT_NEAR(cells[0].tokens_per_second, 1e5 / 13, 1e-9);
  EXPECT_EQ(cells[0].exposed_ms, 2);
  EXPECT_EQ(cells[0].predicted_ratio, 20.0 / 13);  // the middle of 20 / 10, 20 / 90 and 20 / 13
  EXPECT_EQ(cells[0].gradient_error, 1e-6);
  EXPECT_EQ(cells[1].status, CellStatus::failed);
}

TEST(CellsFile, GoesOnBehindTheLastWholeLine) {
  const TemporaryFolder folder;
  const std::filesystem::path study = folder.path() / "study";
  const StudySettings settings{{"mode", "strong"}, {"config", "a = 1\nb = 2\n"}};
  Cell done = cell_of(100, 1, 20, 1e5), failed = cell_of(200, 1, NAN, NAN);
  failed.status = CellStatus::failed;
  failed.step_samples_ms.clear();
  failed.reason = "it is \"said\", with\ta tab";
  {
    CellsFile file(study, settings);
    file.append(done);
    file.append(failed);
  }
  const std::string whole = file_text(cells_path(study));
  std::ofstream(cells_path(study), std::ios::app) << R"({"seq_len":400,"ran)";
  EXPECT_EQ(read_cells(study).visits.size(), 2u);
  {
    CellsFile file(study, settings);
    EXPECT_EQ(file_text(cells_path(study)), whole);
    EXPECT_TRUE(file.has(100, 1, 0));
    EXPECT_FALSE(file.has(100, 1, 1));  // a second visit
    EXPECT_TRUE(file.has(200, 1, 0));
    EXPECT_TRUE(file.has(200, 1, 1));   // it failed
    EXPECT_FALSE(file.has(400, 1, 0));
    EXPECT_EQ(file.visits()[1].reason, failed.reason);
    EXPECT_EQ(file.visits()[0].step_ms, 20);
    EXPECT_TRUE(std::isnan(file.visits()[1].step_ms));
    EXPECT_THROW(CellsFile(study, settings), Error);  // another process, as it were
  }
  const auto cause = [&](const std::filesystem::path& path, const StudySettings& other) {
    try {
      CellsFile file(path, other);
    } catch (const Error& error) {
      return std::string(error.what());
    }
    return std::string("nothing");
  };
  EXPECT_THAT(cause(study, {{"mode", "strong"}, {"config", "a = 1\nb = 3\n"}}),
              HasSubstr("another config: \"b = 2\" there, \"b = 3\" here"));
  EXPECT_THAT(cause(folder.path(), settings), HasSubstr("is not a study's folder: it holds"));
  write_text(cells_path(study), whole + "{}\n");
  EXPECT_THAT(cause(study, settings), HasSubstr("line 4 of"));
  write_text(cells_path(study), "{\"step\":1}\n");
  EXPECT_THAT(cause(study, settings), HasSubstr("line 1 of"));
}

/// Runs `ringlet scale` on configs/tiny.toml without a calibration.
ProgramResult scale(const std::filesystem::path& folder, std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), {"XDG_CACHE_HOME=" + folder.string(), RINGLET_PROGRAM, "scale", kTiny});
  return run_program("/usr/bin/env", arguments, folder);
}

TEST(ScaleCommand, RepeatsNoFinishedCell) {
  const TemporaryFolder folder;
  const std::filesystem::path cells = folder.path() / "s" / "cells.jsonl";
  const std::vector<std::string> grid{"--seq-len", "64,96", "--ranks", "1,2,100", "--steps", "1", "-o", "s"};
  const ProgramResult first = scale(folder.path(), grid);
  ASSERT_EQ(first.exit_code, 0) << first.errors;
  EXPECT_THAT(first.output, HasSubstr("T = 64 on 100 ranks: impossible: rank 64 of the ring would hold 0 of 64 tokens"));
  const std::vector<std::string> lines = lines_of(cells);
  ASSERT_EQ(lines.size(), 15u);  // settings, three visits of four cells, two that are impossible
  // Killed while a cell of the first visits was written, and one of the last.
  for (const size_t whole : {4, 12}) {
    std::string torn;
    for (size_t i = 0; i < whole; ++i) torn += lines[i] + '\n';
    write_text(cells, torn + lines[whole].substr(0, 40));
    const ProgramResult second = scale(folder.path(), grid);
    ASSERT_EQ(second.exit_code, 0) << second.errors;
    const std::vector<std::string> again = lines_of(cells);
    ASSERT_EQ(again.size(), 15u);
    for (size_t i = 0; i < whole; ++i) EXPECT_EQ(again[i], lines[i]) << i;
    EXPECT_NE(again[whole], lines[whole]);  // measured anew, with times of its own
  }
  for (const char* name : {"cells.csv", "study.json", "report.html", "report_time.svg"}) {
    EXPECT_TRUE(std::filesystem::exists(folder.path() / "s" / name)) << name;
  }
  const auto json = nlohmann::json::parse(file_text(folder.path() / "s" / "study.json"));
  EXPECT_EQ(json["cells"].size(), 6u);
  EXPECT_EQ(lines_of(folder.path() / "s" / "cells.csv").size(), 7u);

  const ProgramResult other = scale(folder.path(), {"--steps", "4", "-o", "s"});
  EXPECT_EQ(other.exit_code, 1);
  EXPECT_THAT(other.errors, HasSubstr("another steps"));
}

TEST(ScaleCommand, LongestContextIsTrained) {
  const TemporaryFolder folder;
  const ProgramResult result =
      scale(folder.path(), {"--max-context", "--budget", "12MiB", "--ranks", "1,2", "-o", "s", "--json"});
  ASSERT_EQ(result.exit_code, 0) << result.errors;
  const auto cells = nlohmann::json::parse(result.output)["cells"];
  ASSERT_EQ(cells.size(), 2u);
  for (const auto& cell : cells) {
    EXPECT_EQ(cell["status"], "done") << cell;
    EXPECT_EQ(cell["peak_bytes"], cell["predicted_peak_bytes"]);
    EXPECT_LE(cell["peak_bytes"], 12 << 20);
    EXPECT_EQ(cell["seq_len"].get<int64_t>() % 1024, 0);
  }
  EXPECT_GT(cells[1]["seq_len"], cells[0]["seq_len"]);
}

TEST(ScaleCommand, CalibratesBeforeAVisit) {
  const TemporaryFolder folder;
  const std::vector<std::string> words{"--max-context", "--budget", "6MiB", "--ranks", "2", "-o", "s", "--json"};
  std::vector<std::string> calibrating = words;
  calibrating.push_back("--calibrate");
  const ProgramResult result = scale(folder.path(), calibrating);
  ASSERT_EQ(result.exit_code, 0) << result.errors;
  const auto cell = nlohmann::json::parse(result.output)["cells"][0];
  EXPECT_GT(cell["predicted_step_ms"], 0);
  EXPECT_DOUBLE_EQ(cell["predicted_ratio"].get<double>(),
                   cell["predicted_step_ms"].get<double>() / cell["step_ms"].get<double>());
  const ProgramResult without = scale(folder.path(), words);  // its numbers would be of another kind
  EXPECT_EQ(without.exit_code, 1);
  EXPECT_THAT(without.errors, HasSubstr("calibrated"));
}

TEST(ScaleCommand, WeakGridHasTheSameTokensARank) {
  const TemporaryFolder folder;
  const ProgramResult result = scale(
      folder.path(), {"--weak", "--seq-len", "64,80", "--ranks", "1,2", "--steps", "1", "-o", "s", "--json"});
  ASSERT_EQ(result.exit_code, 0) << result.errors;
  const auto cells = nlohmann::json::parse(result.output)["cells"];
  ASSERT_EQ(cells.size(), 4u);
  for (size_t i = 0; i < 4; ++i) {
    const int64_t share = i < 2 ? 64 : 80, ranks = i % 2 == 0 ? 1 : 2;
    EXPECT_EQ(cells[i]["tokens_per_rank"], share) << i;
    EXPECT_EQ(cells[i]["ranks"], ranks) << i;
    EXPECT_EQ(cells[i]["seq_len"], share * ranks) << i;
    EXPECT_EQ(cells[i]["status"], "done") << i;
  }
  const double beside = cells[1]["model_flops"].get<double>() / cells[1]["step_ms"].get<double>() /
                        cells[1]["cores"].get<double>();
  const double fewest = cells[0]["model_flops"].get<double>() / cells[0]["step_ms"].get<double>() /
                        cells[0]["cores"].get<double>();
  EXPECT_DOUBLE_EQ(cells[0]["weak_percent"].get<double>(), 100);
  EXPECT_NEAR(cells[1]["weak_percent"].get<double>(), 100 * beside / fewest, 1e-6);
  EXPECT_LE(cells[1]["gradient_error"].get<double>(), cells[1]["gradient_tolerance"].get<double>());
  EXPECT_THAT(file_text(folder.path() / "s" / "report.html"), HasSubstr("Weak efficiency"));
}

TEST(ScaleCommand, BadInputIsOneLineAndAdvice) {
  const TemporaryFolder folder;
  const auto expect = [&](const std::vector<std::string>& arguments, int code, const std::string& cause) {
    const ProgramResult result = scale(folder.path(), arguments);
    EXPECT_EQ(result.exit_code, code) << cause;
    EXPECT_THAT(result.errors, HasSubstr(cause));
    EXPECT_EQ(std::ranges::count(result.errors, '\n'), 2) << result.errors;
  };
  expect({"--seq-len", "2", "--ranks", "4,8", "-o", "s"}, 1, "none of the 2 cells can run; T = 2 on 4 ranks");
  expect({"--budget", "1KiB", "-o", "s"}, 1, "out of memory: needs");
  expect({"--seq-len", "2x", "-o", "s"}, 2, "\"2x\" is not a number of tokens");
  expect({"--ranks", "0", "-o", "s"}, 2, "0");
  expect({"--strong", "--weak", "-o", "s"}, 2, "at most 1");
  EXPECT_FALSE(std::filesystem::exists(folder.path() / "s"));
}

}  // namespace
}  // namespace ringlet::test
