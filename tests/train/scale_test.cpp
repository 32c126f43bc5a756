// `ringlet scale`: cells, what is worked out of them, and the folder that it goes on with.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "kernels/check.h"
#include "tests/support/program.h"
#include "tests/support/training_case.h"
#include "train/scale/cell_run.h"
#include "train/quantile.h"
#include "train/scale/study.h"
#include "train/units.h"

namespace ringlet::test {
namespace {

using testing::HasSubstr;

const std::string kTiny = RINGLET_SOURCE_DIR "/configs/tiny.toml";

CellWork tiny_work(std::vector<std::string> overrides = {}) {
  return {.config = kTiny, .overrides = std::move(overrides), .vocabulary = 257, .least_steps = 2, .least_seconds = 0};
}

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

// What the plan says of a cell is what its training does, to the byte.
TEST(ScaleCell, PredictedBytesAreTheMeasuredOnes) {
  const TemporaryFolder folder;
  for (const char* layout : {"zigzag", "contiguous"}) {
    const CellWork work = tiny_work({std::string("run.layout=") + layout, "train.batch_windows=2"});
    for (const int64_t seq_len : {333, 500}) {
      for (const int64_t ranks : {1, 3}) {
        const PlannedCell planned = plan_cell(work, seq_len, ranks);
        const std::optional<Cell> cell = measure_cell(work, planned, folder.path(), {});
        ASSERT_TRUE(cell);
        ASSERT_EQ(cell->status, CellStatus::done) << cell->reason;
        EXPECT_EQ(cell->peak_bytes, cell->predicted_peak_bytes) << layout << seq_len << ranks;
        EXPECT_EQ(cell->sent_bytes, cell->predicted_sent_bytes) << layout << seq_len << ranks;
        EXPECT_EQ(cell->tokens_per_step, double(2 * seq_len));
        EXPECT_GE(cell->steps, 2);
        EXPECT_GT(cell->attention_ms, 0);
        if (ranks == 1) {
          EXPECT_EQ(cell->ring_wait_ms, 0);
        }
        EXPECT_GT(cell->mfu_percent, 0);
        EXPECT_GT(cell->hfu_percent, cell->mfu_percent);
      }
    }
  }
  EXPECT_TRUE(std::filesystem::is_empty(folder.path()));  // the made-up text is gone
}

TEST(ScaleCell, WhatCannotRunKeepsItsReason) {
  EXPECT_THAT(plan_cell(tiny_work(), 3, 4).cell.reason, HasSubstr("would hold 0 of 3 tokens"));
  EXPECT_THAT(plan_cell(tiny_work({"run.ring=2"}), 64, 3).cell.reason, HasSubstr("run.ring = 2 does not divide"));
  const CellWork small = tiny_work({"memory.arena_bytes=100000"});
  const PlannedCell planned = plan_cell(small, 64, 1);
  EXPECT_EQ(planned.cell.status, CellStatus::impossible);
  EXPECT_THAT(planned.cell.reason, HasSubstr("out of memory: needs"));
  EXPECT_GT(planned.cell.predicted_peak_bytes, 100000);
  // Measured all the same, it fails with the arena's own words.
  const TemporaryFolder folder;
  const std::optional<Cell> failed = measure_cell(small, planned, folder.path(), {});
  ASSERT_TRUE(failed);
  EXPECT_EQ(failed->status, CellStatus::failed);
  EXPECT_THAT(failed->reason, HasSubstr("out of memory: '"));
  EXPECT_TRUE(std::isnan(failed->step_ms));
}

TEST(ScaleCell, AStopLeavesNoCell) {
  const TemporaryFolder folder;
  EXPECT_FALSE(measure_cell(tiny_work(), plan_cell(tiny_work(), 64, 2), folder.path(), [] { return true; }));
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
  EXPECT_NEAR(study.fits[0].memory.coefficients[0], 1000, 1e-6);
  EXPECT_NEAR(study.fits[0].memory.coefficients[1], 10, 1e-9);
  EXPECT_TRUE(study.fits[1].time.coefficients.empty());
}

TEST(CellsFile, GoesOnBehindTheLastWholeLine) {
  const TemporaryFolder folder;
  const std::filesystem::path study = folder.path() / "study";
  const StudySettings settings{{"mode", "strong"}, {"config", "a = 1\nb = 2\n"}};
  Cell done = cell_of(100, 1, 20, 1e5), failed = cell_of(200, 1, NAN, NAN);
  failed.status = CellStatus::failed;
  failed.reason = "it is \"said\", with\ta tab";
  {
    CellsFile file(study, settings);
    file.append(done);
    file.append(failed);
  }
  const std::string whole = file_text(cells_path(study));
  std::ofstream(cells_path(study), std::ios::app) << R"({"seq_len":400,"ran)";
  EXPECT_EQ(read_cells(study).cells.size(), 2u);
  {
    CellsFile file(study, settings);
    EXPECT_EQ(file_text(cells_path(study)), whole);
    EXPECT_TRUE(file.has(100, 1));
    EXPECT_TRUE(file.has(200, 1));
    EXPECT_FALSE(file.has(400, 1));
    EXPECT_EQ(file.cells()[1].reason, failed.reason);
    EXPECT_EQ(file.cells()[0].step_ms, 20);
    EXPECT_TRUE(std::isnan(file.cells()[1].step_ms));
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
  ASSERT_EQ(lines.size(), 7u);
  // Killed while the last but one cell was written.
  std::string torn;
  for (size_t i = 0; i < 5; ++i) torn += lines[i] + '\n';
  write_text(cells, torn + lines[5].substr(0, 40));
  const ProgramResult second = scale(folder.path(), grid);
  ASSERT_EQ(second.exit_code, 0) << second.errors;
  const std::vector<std::string> again = lines_of(cells);
  ASSERT_EQ(again.size(), 7u);
  for (size_t i = 0; i < 5; ++i) EXPECT_EQ(again[i], lines[i]) << i;
  EXPECT_NE(again[5], lines[5]);  // measured anew, with times of its own
  for (const char* name : {"cells.csv", "study.json", "report.html", "report_time.svg"}) {
    EXPECT_TRUE(std::filesystem::exists(folder.path() / "s" / name)) << name;
  }
  const auto json = nlohmann::json::parse(file_text(folder.path() / "s" / "study.json"));
  EXPECT_EQ(json["cells"].size(), 6u);
  EXPECT_EQ(lines_of(folder.path() / "s" / "cells.csv").size(), 7u);

  const ProgramResult other = scale(folder.path(), {"--steps", "2", "-o", "s"});
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
