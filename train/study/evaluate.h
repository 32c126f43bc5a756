#pragma once

#include "data/corpus.h"
#include "train/checkpoint.h"
#include "train/config.h"
#include "train/position_bins.h"
#include "train/study/blocked_loss.h"

namespace ringlet {

/// The first `blocks * block_tokens` tokens of the validation text: the same for all variants of a
/// study.
struct EvaluationText {
  int64_t block_tokens = 0, blocks = 0;
  int64_t tokens() const { return block_tokens * blocks; }
};

/// An eighth of the tokens that a variant trains on, in blocks of the longest window; at least
/// kLeastBlocks of them, and no more than the corpus holds. Throws Error when it does not hold one.
EvaluationText evaluation_text(int64_t corpus_tokens, int64_t longest_window,
                               int64_t trained_tokens);

inline constexpr int64_t kLeastBlocks = 16;

/// What a model says of that text, cut into windows of its own length.
struct VariantEvaluation {
  PositionBins bins;
  BlockedLoss all, first_quarter, last_quarter;  // quarters of the positions, as in PositionBins
};

/// Scores a checkpoint on the ranks of the config. Throws Error.
VariantEvaluation evaluate_variant(const Checkpoint& checkpoint, const Config& config,
                                   const Corpus& corpus, const EvaluationText& text);

}  // namespace ringlet
