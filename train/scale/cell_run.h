#pragma once

#include <filesystem>
#include <functional>
#include <optional>

#include "train/config.h"
#include "train/scale/cell_training.h"
#include "train/scale/cells.h"

namespace ringlet {

/// What is measured in each cell of a study.
struct CellWork {
  std::filesystem::path config;
  std::vector<std::string> overrides;
  int64_t vocabulary = 0;
  StepCounts counts{};  // of each visit
};

/// A cell before it is measured: predictions, or why it is impossible.
struct PlannedCell {
  Cell cell;
  Config config;
  GptConfig gpt;
};

/// The config of a cell: the study's at that length and on that many ranks, without evaluation, checkpoints and checks.
/// Throws UsageError when there cannot be such a config.
Config cell_config(const CellWork& work, int64_t seq_len, int64_t ranks);

/// Runs the cell's step dry; with times where this machine is calibrated for its threads. What the config, the plan or
/// the memory budget does not allow makes an impossible cell, not an error.
PlannedCell plan_cell(const CellWork& work, int64_t seq_len, int64_t ranks);

/// Predicts the times of a possible cell anew, with rates that are measured now, and not kept: this process has more in its
/// memory than a run has. Where that fails, the prediction stays. Cost: that of calibrate().
void calibrate_cell(PlannedCell& planned);

/// The gradient of the first step on one rank, kept for the next cells of that length.
struct OneRankGradient {
  double host_bytes = 0;    // what one rank may take of the host's memory
  int64_t seq_len = 0;      // 0: none is known
  Values values{};
};

/// A visit of a cell. The text lies in `folder` as long as this takes.
struct CellVisit {
  std::filesystem::path folder;
  std::function<bool()> stop{};           // asked after each step; may be absent
  OneRankGradient* one_rank = nullptr;    // absent: the gradient is not compared
};

/// Trains the cell's steps, as `ringlet train` would, on a made-up text of one document; compares the gradient of the first
/// with one rank's, which it computes first where `one_rank` is of another length: one step on all cores, or on one GPU.
/// Where memory is too small for that, gradient_note says so. An error makes a failed cell. Absent when `stop` asked to end before
/// all steps were done.
std::optional<Cell> measure_cell(const CellWork& work, const PlannedCell& planned, const CellVisit& visit);

}  // namespace ringlet
