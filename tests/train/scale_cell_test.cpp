// A cell of `ringlet scale`: what is planned, measured and compared of it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "kernels/check.h"
#include "tests/support/training_case.h"
#include "train/scale/cell_run.h"
#include "train/scale/study.h"

namespace ringlet::test {
namespace {

using testing::HasSubstr;

CellWork tiny_work(std::vector<std::string> overrides = {}) {
  return {.config = RINGLET_SOURCE_DIR "/configs/tiny.toml", .overrides = std::move(overrides), .vocabulary = 257,
          .counts = {.warmup_steps = 1, .least_steps = 2, .least_seconds = 0}};
}

// What the plan says of a cell is what its training does, to the byte.
TEST(ScaleCell, PredictedBytesAreTheMeasuredOnes) {
  const TemporaryFolder folder;
  for (const char* layout : {"zigzag", "contiguous"}) {
    const CellWork work = tiny_work({std::string("run.layout=") + layout, "train.batch_windows=2"});
    for (const int64_t seq_len : {333, 500}) {
      for (const int64_t ranks : {1, 3}) {
        const PlannedCell planned = plan_cell(work, seq_len, ranks);
        const std::optional<Cell> cell = measure_cell(work, planned, {folder.path()});
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
  const std::optional<Cell> failed = measure_cell(small, planned, {folder.path()});
  ASSERT_TRUE(failed);
  EXPECT_EQ(failed->status, CellStatus::failed);
  EXPECT_THAT(failed->reason, HasSubstr("out of memory: '"));
  EXPECT_TRUE(std::isnan(failed->step_ms));
}

TEST(ScaleCell, AStopLeavesNoCell) {
  const TemporaryFolder folder;
  EXPECT_FALSE(measure_cell(tiny_work(), plan_cell(tiny_work(), 64, 2), {folder.path(), [] { return true; }}));
}

/// The gradients of cells in the order that they are measured in, beside one rank's.
class ScaleGradient : public testing::Test {
 protected:
  Cell measured(const CellWork& work, int64_t seq_len, int64_t ranks) {
    const std::optional<Cell> cell =
        measure_cell(work, plan_cell(work, seq_len, ranks), {folder_.path(), {}, &one_rank_});
    EXPECT_TRUE(cell && cell->status == CellStatus::done);
    return cell.value_or(Cell{});
  }
  static void expect_equal(const Cell& cell) {
    EXPECT_GT(cell.gradient_error, 0) << cell.ranks;  // of f32 sums in another order
    EXPECT_LE(cell.gradient_error, cell.gradient_tolerance) << cell.ranks;
    EXPECT_THAT(cell.gradient_note, testing::AnyOf(HasSubstr("blocks."), HasSubstr("embedding"), HasSubstr("norm")));
  }
  TemporaryFolder folder_;
  OneRankGradient one_rank_{.host_bytes = 1e9};
};

TEST_F(ScaleGradient, IsThatOfOneRankMeasuredOrNot) {
  const CellWork work = tiny_work({"train.batch_windows=3"});
  const Cell alone = measured(work, 150, 1);
  EXPECT_TRUE(std::isnan(alone.gradient_error));
  EXPECT_EQ(one_rank_.seq_len, 150);
  expect_equal(measured(work, 150, 3));
  const CellWork two_rings = tiny_work({"train.batch_windows=3", "run.ring=2"});
  expect_equal(measured(two_rings, 150, 4));
  expect_equal(measured(two_rings, 90, 4));  // nobody has measured one rank of this length
  EXPECT_EQ(one_rank_.seq_len, 90);
}

TEST_F(ScaleGradient, ThatIsWrongIsSaid) {
  const CellWork work = tiny_work();
  measured(work, 64, 1);
  const auto found = std::ranges::find_if(one_rank_.values, [](const auto& entry) {
    return entry.first.find("blocks.1") != std::string::npos && entry.second.size() > 1000;
  });
  ASSERT_NE(found, one_rank_.values.end());
  for (double& value : found->second) value *= 1.01;
  const Cell cell = measured(work, 64, 2);
  EXPECT_NEAR(cell.gradient_error, 0.01 / 1.01, 1e-4);
  EXPECT_THAT(cell.gradient_note, HasSubstr(found->first));
  EXPECT_THAT(to_text(make_study({{{"mode", "strong"}}, {cell}})),
              HasSubstr("T = 64 on 2 ranks: gradient WRONG, off by 9.9e-03 of"));
}

TEST_F(ScaleGradient, ThatOneRankHasNoMemoryForIsNotComparedAndSaysSo) {
  one_rank_.host_bytes = 1e5;
  const Cell cell = measured(tiny_work(), 64, 2);
  EXPECT_TRUE(std::isnan(cell.gradient_error));
  EXPECT_THAT(to_text(make_study({{{"mode", "strong"}}, {cell}})),
              HasSubstr("T = 64 on 2 ranks: gradient not compared: one rank would need"));
}

}  // namespace
}  // namespace ringlet::test
