#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "train/report/html.h"
#include "train/report/position_history.h"

namespace ringlet {

/// Values along the steps of a run; NaN: not finite there, or not told.
struct StepSeries {
  std::vector<double> steps, values;
};

/// Loss by position in the window, in bins; positions: the last one of each bin + 1.
struct PositionCurve {
  std::vector<double> positions, losses;
  std::vector<double> contexts;  // the middle of each bin (middle_context)
  std::string source;  // "validation after step 200", "training, steps 180 to 200"
};

/// What a run's metrics.jsonl tells.
struct RunMetrics {
  std::string name;
  int64_t steps = 0;  // trained
  StepSeries loss, validation_loss, score, validation_score, tokens_per_second;
  StepSeries step_ms, bubble_percent;  // bubble: mean of the ranks
  PositionCurve by_position;
  PositionHistory history;  // of training
  std::vector<double> peak_bytes, predicted_peak_bytes;  // by rank; predicted: empty when the run's config is gone
  std::vector<double> sent_bytes;                        // in the last step, by rank
};

/// Is there a metrics.jsonl in the folder?
bool is_run(const std::filesystem::path& folder);

/// Throws Error: no step was trained, or a line is damaged (its number). A last line cut off by a kill does not count.
RunMetrics read_run(const std::filesystem::path& folder);

/// Adds one or several runs to a page, each plot with all of them, but heat maps, which each run has for
/// itself where there are at most six. The plots' names begin with `prefix`, so that one page can hold other plots too.
void add_runs(HtmlPage& page, const std::vector<RunMetrics>& runs, std::string_view prefix = {});

/// At most `points` points: means of as many neighbours as it takes.
StepSeries thinned(const StepSeries& series, size_t points);

}  // namespace ringlet
