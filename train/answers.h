#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "data/batch.h"
#include "kernels/backend.h"
#include "train/position_bins.h"

namespace ringlet {

/// How many of a corpus's answers a model gives. A token is right when its logit is the largest
/// one, alone; an answer (Corpus::answer_end) when all of its tokens are.
class AnswerScores {
 public:
  /// right[i]: is answer token i of the corpus right, 1 or 0; for the first right.size() of them.
  /// An answer that goes on behind these is left out of answers().
  AnswerScores(const Corpus& corpus, std::span<const double> right);

  MeanLoss tokens() const { return tokens_; }  // mean: the share that is right
  MeanLoss answers() const { return answers_; }
  /// Answers by distance, in the bins of PositionBins: 1, 2-3, 4-7, ... without those at the ends
  /// that are empty.
  const std::vector<PositionBins::Bin>& by_distance() const { return by_distance_; }

 private:
  MeanLoss tokens_, answers_;
  std::vector<PositionBins::Bin> by_distance_;
};

/// A mark, 0, for each answer token that is a label of the first `window_count` windows.
std::vector<double> marks_of(const WindowReader& reader, int64_t window_count);

/// Logits of some rows, [rows, vocabulary], on a device.
struct DeviceLogits {
  Backend& device;
  const Tensor& values;
};

/// Marks the answers of this rank's rows first_row ... of a batch that the logits give rightly.
/// Waits for the device, once for each answer.
void mark_right_answers(const Corpus& corpus, const Batch& batch, std::span<const Piece> pieces,
                        int64_t first_row, const DeviceLogits& logits, std::span<double> marks);

}  // namespace ringlet
