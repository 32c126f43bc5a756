#pragma once

#include <cmath>
#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <span>
#include <string>
#include <vector>

#include "train/settings_log.h"

namespace ringlet {

enum class CellStatus : uint8_t { done, impossible, failed };
const char* name_of(CellStatus status);

/// A length on a number of ranks: what was predicted and what was measured, in one visit or all of them. NaN: not known.
struct Cell {
  int64_t seq_len = 0, ranks = 0;
  std::string layout;
  CellStatus status = CellStatus::done;
  std::string reason;  // of a cell that was not measured, one line
  std::string peak_moment;    // in which the fullest rank is fullest, as the plan tells
  std::string gradient_note;  // which parameter gradient_error is of, or why there is none
  std::vector<double> step_samples_ms;  // each measured step

  double ring = NAN, tokens_per_rank = NAN;  // of the fullest rank, of a window
  double threads_per_rank = NAN, cores = NAN;  // cores (or GPUs): those that compute, ranks * threads or all there are
  double tokens_per_step = NAN, steps = NAN;   // steps: measured
  double step_ms = NAN, step_ms_p10 = NAN, step_ms_p90 = NAN, predicted_step_ms = NAN;
  double predicted_ratio = NAN;  // predicted over measured step, of each visit
  double tokens_per_second = NAN, tokens_per_second_per_rank = NAN;
  double mfu_percent = NAN, mfu_palm_percent = NAN, hfu_percent = NAN;
  double strong_percent = NAN, weak_percent = NAN, ideal_percent = NAN;  // see derive()
  double exposed_ms = NAN, bubble_percent = NAN, predicted_bubble_percent = NAN;  // means over the ranks
  double imbalance = NAN;                                  // largest compute time of a rank over the mean; CPU only
  double attention_ms = NAN, ring_wait_ms = NAN;           // of a step, means over the ranks
  double peak_bytes = NAN, predicted_peak_bytes = NAN;     // of the fullest arena
  double sent_bytes = NAN, predicted_sent_bytes = NAN;     // in a step, by the rank that sends most
  double model_flops = NAN, palm_flops = NAN, executed_flops = NAN;  // of a step (train/plan/plan.h)
  double peak_gflops = NAN;  // fused multiply-adds of these cores, before and after; published, of these GPUs in bf16
  // Of the first step, beside one rank's with the same weights and windows: the parameter that is off most, in L2.
  double gradient_error = NAN, gradient_tolerance = NAN;
};

/// What follows from the samples: step_ms with its quantiles, tokens per second, utilisation.
void derive_speed(Cell& cell);

/// Visits of cells, each cell's made one, in the order of its first: all samples together, of other numbers the median (also
/// of predicted over measured, for each visit may have a prediction of its own minute). A visit that failed makes a failed cell.
std::vector<Cell> merge_visits(std::span<const Cell> visits);

/// The numbers of a cell by name, in the order of the columns of cells.csv.
struct CellField {
  const char* name;
  double Cell::*value;
};
std::span<const CellField> cell_fields();

/// Every key always; what is not known is null.
nlohmann::ordered_json to_json(const Cell& cell);

struct CellsOfStudy {
  StudySettings settings;
  std::vector<Cell> visits;
};

/// The file that makes a folder a study's.
std::filesystem::path cells_path(const std::filesystem::path& folder);

/// Reads a study's cells; a last line that was cut off by a kill does not count. Throws Error that names the line.
CellsOfStudy read_cells(const std::filesystem::path& folder);

/// DIR/cells.jsonl under write: the settings, then a line for each visit of a cell (train/settings_log.h).
class CellsFile {
 public:
  /// Goes on with the study that is there. Throws Error when the folder holds something else, or a study with other
  /// settings (says which).
  CellsFile(const std::filesystem::path& folder, const StudySettings& settings);
  const std::vector<Cell>& visits() const { return visits_; }
  /// Were there more visits of this cell than `earlier`, or did one end without numbers?
  bool has(int64_t seq_len, int64_t ranks, int64_t earlier) const;
  void append(const Cell& visit);

 private:
  std::vector<Cell> visits_;
  SettingsLog log_;
};

/// cells.csv: a heading and a line for each cell.
std::string to_csv(std::span<const Cell> cells);

}  // namespace ringlet
