#pragma once

#include <filesystem>
#include <functional>
#include <optional>

#include "train/config.h"
#include "train/scale/cells.h"

namespace ringlet {

/// What is measured in each cell of a study.
struct CellWork {
  std::filesystem::path config;
  std::vector<std::string> overrides;
  int64_t vocabulary = 0;
  int64_t warmup_steps = 2;
  int64_t least_steps = 5;    // measured; more where steps are short, up to 20 times as many,
  double least_seconds = 2;   // until they took so long
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

/// Trains the cell's steps, as `ringlet train` would, on a made-up text of one document, which lies in `folder` as long as
/// this takes. An error makes a failed cell. Absent when `stop` asked to end before all steps were done.
std::optional<Cell> measure_cell(const CellWork& work, const PlannedCell& planned, const std::filesystem::path& folder,
                                 const std::function<bool()>& stop);

}  // namespace ringlet
