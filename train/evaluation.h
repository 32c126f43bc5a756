#pragma once

#include <optional>
#include <span>
#include <vector>

#include "data/batch.h"
#include "model/gpt.h"
#include "train/answers.h"
#include "train/checkpoint.h"
#include "train/config.h"
#include "train/position_bins.h"

namespace ringlet {

/// A rank in a world of data-parallel rings, with the model it runs: what training and evaluation share.
struct ModelRank {
  RankContext context;  // its ring
  Comm& world;
  const SequenceLayout& layout;
  const StepSettings& settings;
  Gpt& gpt;

  int64_t rings() const { return world.size() / context.ring.size(); }
  int64_t ring_index() const { return world.rank() / context.ring.size(); }
  const std::vector<Piece>& pieces() const { return layout.ranks[context.ring.rank()]; }
};

/// All weights of a checkpoint, checked to fit (check_fits) by the caller.
void load_weights(const Checkpoint& checkpoint, const Parameters& parameters);

/// The mask of a window: its documents, or one document for all (causal), and a sliding window (0: none).
Mask mask_of(const Window& window, MaskRule rule, int64_t sliding_window);
/// As above, in the memory that `mask` has.
void set_mask(const Window& window, MaskRule rule, int64_t sliding_window, Mask& mask);

/// Adds the losses of the rows that have a label to the bins of their positions and of their distances into their
/// documents, whatever the mask lets them see.
void add_losses(std::span<const float> losses, const Batch& batch, std::span<const Piece> pieces,
                PositionBins& bins);

/// The losses of this rank's rows of one window, forward only. `see`: as in Gpt::evaluate. Waits for the device.
std::vector<float> score(const ModelRank& rank, const Batch& batch, const Mask& mask,
                         const SeeLogits& see = {});

/// Sums values over all ranks, in rank order. Collective; waits.
void sum_over_world(const ModelRank& rank, std::span<double> values);

struct Evaluation {
  PositionBins bins;
  std::optional<AnswerScores> answers;  // where the corpus has them
};

/// Loss by position and distance of the first `window_count` windows of a corpus, shared out over the rings, and which of its
/// answers are right. Collective; all ranks get the same sums.
Evaluation evaluate(const ModelRank& rank, const WindowReader& reader, int64_t window_count,
                    MaskRule rule, int64_t sliding_window);

/// What evaluate() measured, in bits per byte of text: the loss of all tokens, ends of documents too, over the bytes of
/// those that are predicted (of a document all but its first token). Absent where the ids' text is not known, or
/// no byte of it is predicted.
std::optional<double> bits_per_byte(const Corpus& corpus, const WindowReader& reader,
                                    int64_t window_count, const PositionBins& bins);

/// The same tokens scored with all of their window before them, and with at most `context` tokens.
struct ContextComparison {
  int64_t context = 0, tokens = 0;
  double full_loss = 0, short_loss = 0;
  double difference = 0;      // short_loss - full_loss: what the longer context is worth, in nats
  double standard_error = 0;  // of the difference, over blocks of context / 2 tokens
};  // means of no tokens and the error of one block are NaN

/// Scores the tokens at positions >= context of each window three times: once as they are, and with the window
/// cut into independent pieces of `context` tokens at two offsets, so that every token is once in the second half of
/// a piece and sees between context / 2 and context tokens. Collective.
ContextComparison compare_context(const ModelRank& rank, const WindowReader& reader,
                                  int64_t window_count, MaskRule rule, int64_t sliding_window,
                                  int64_t context);

}  // namespace ringlet
