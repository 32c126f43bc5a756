#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "train/answers.h"
#include "train/position_bins.h"

namespace ringlet {

/// What one training step was like. Per-rank values stand in rank order.
struct MetricsRecord {
  int64_t step = 0, steps = 0;  // of `steps` in all
  int64_t stage = 0, seq_len = 0;  // stage from 1, and its length; 0, 0: of a run without stages
  int64_t stage_end = 0;           // its last step; not in the JSON
  double loss = 0;              // nats per token, mean over all scored tokens of the step
  double loss_first_quarter = 0, loss_last_quarter = 0;
  std::vector<PositionBins::Bin> loss_by_position, loss_by_distance;
  std::optional<InContextScore> in_context_score;
  double learning_rate = 0;
  double gradient_norm = 0;  // before clipping
  int64_t tokens = 0;        // trained so far
  double tokens_per_second = 0;
  double step_ms = 0, data_wait_ms = 0;
  int64_t skipped_steps = 0;  // so far

  std::vector<double> compute_ms;      // processor time of the rank; empty where GPUs compute
  std::vector<double> exposed_ms;      // its compute queue stood still for messages
  std::vector<double> bubble_percent;  // exposed_ms as a share of step_ms
  std::vector<int64_t> peak_bytes;     // high-water mark of its arena
  std::vector<int64_t> sent_bytes;     // to other ranks, all but evaluation

  /// Largest compute time over the mean of all ranks: 1 is an even share. Absent without compute_ms.
  std::optional<double> imbalance() const;
};

/// An evaluation on the validation corpus after a step.
struct EvalRecord {
  int64_t step = 0;
  PositionBins bins;
  std::optional<AnswerScores> answers = {};  // where the corpus has them
  int64_t stage = 0, seq_len = 0;  // as in MetricsRecord
};

/// " (first 1/4 2.31, last 1/4 1.87)", with so many digits; empty where no token of a quarter counted.
std::string quarters_text(double loss, double first_quarter, double last_quarter, int digits);

/// One JSON object without line breaks; keys of what is absent are left out. Values that are not
/// finite become null, and the list "non_finite" names their keys, so that every line is valid JSON.
std::string to_json_line(const MetricsRecord& record);
std::string to_json_line(const EvalRecord& record);

}  // namespace ringlet
