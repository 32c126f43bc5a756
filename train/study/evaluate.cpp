#include "train/study/evaluate.h"

#include <fmt/format.h>

#include <algorithm>

#include "kernels/check.h"
#include "train/evaluation.h"
#include "train/world.h"

namespace ringlet {
namespace {

/// Sums that ranks add up: those of the bins, then for each group of positions the tokens and
/// losses of each block.
class Scores {
 public:
  Scores(int64_t length, const EvaluationText& text)
      : text_(text), length_(length), bins_(length), groups_(3, BlockedLoss(size_t(text.blocks))) {}

  /// labels of tokens behind the text become -1.
  void add(std::span<const float> losses, Batch& batch, std::span<const Piece> pieces) {
    const int64_t quarter = std::max<int64_t>(1, length_ / 4);
    for (const Piece& piece : pieces) {
      for (int64_t i = 0; i < piece.row_count; ++i) {
        const int64_t row = piece.first_row + i, position = piece.position(i);
        const int64_t block = (batch.window.first_token + position) / text_.block_tokens;
        if (block >= text_.blocks) batch.labels[row] = -1;
        if (batch.labels[row] < 0) continue;
        put(0, block, losses[row]);
        if (position < quarter) put(1, block, losses[row]);
        if (position >= length_ - quarter) put(2, block, losses[row]);
      }
    }
    add_losses(losses, batch, pieces, bins_);
  }

  void sum(const ModelRank& rank) {
    std::vector<double> flat = bins_.to_flat();
    const size_t bin_sums = flat.size();
    for (const BlockedLoss& group : groups_) {
      flat.insert(flat.end(), group.tokens.begin(), group.tokens.end());
      flat.insert(flat.end(), group.losses.begin(), group.losses.end());
    }
    sum_over_world(rank, flat);
    bins_ = PositionBins::from_flat(length_, std::span(flat).first(bin_sums));
    auto next = flat.begin() + std::ptrdiff_t(bin_sums);
    for (BlockedLoss& group : groups_) {
      for (std::vector<double>* values : {&group.tokens, &group.losses}) {
        std::copy_n(next, values->size(), values->begin());
        next += std::ptrdiff_t(values->size());
      }
    }
  }

  VariantEvaluation evaluation() const { return {bins_, groups_[0], groups_[1], groups_[2]}; }

 private:
  void put(size_t group, int64_t block, double loss) {
    groups_[group].tokens[size_t(block)] += 1;
    groups_[group].losses[size_t(block)] += loss;
  }

  const EvaluationText& text_;
  int64_t length_;
  PositionBins bins_;
  std::vector<BlockedLoss> groups_;
};

int64_t windows_of(const WindowPlan& plan, int64_t tokens) {
  int64_t low = 0, high = plan.window_count();  // the first window that begins behind them
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (plan.window(middle).first_token < tokens) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

}  // namespace

EvaluationText evaluation_text(int64_t corpus_tokens, int64_t longest_window,
                               int64_t trained_tokens) {
  const int64_t there = corpus_tokens / longest_window;
  if (there < 1) {
    throw Error(fmt::format("the validation corpus has {} tokens, the longest window {}",
                            corpus_tokens, longest_window),
                "shorten run.seq_len, or prepare more text for validation");
  }
  const int64_t wanted = std::max(kLeastBlocks, trained_tokens / 8 / longest_window);
  return {longest_window, std::min(there, wanted)};
}

VariantEvaluation evaluate_variant(const Checkpoint& checkpoint, const Config& config,
                                   const Corpus& corpus, const EvaluationText& text) {
  const int64_t length = config.run.seq_len;
  const WindowReader reader(corpus, length);
  const int64_t windows = windows_of(reader.plan(), text.tokens());
  const GptConfig gpt_config = config.gpt(corpus.vocabulary());
  check_fits(checkpoint.info(), parameter_shapes(gpt_config));
  const SequenceLayout layout = config.run.sequence_layout();
  const StepSettings settings = config.step_settings();
  std::optional<VariantEvaluation> result;
  run_world(config, [&](RankContext context, Comm& world) {
    Parameters parameters(gpt_config, context.device, {}, Parameters::Gradients::absent);
    load_weights(checkpoint, parameters);
    Gpt gpt(parameters);
    const ModelRank rank{context, world, layout, settings, gpt};
    Scores scores(length, text);
    for (int64_t index = rank.ring_index(); index < windows; index += rank.rings()) {
      Batch batch = reader.read(index, rank.pieces());
      scores.add(score(rank, batch, mask_of(batch.window, config.data.mask, config.data.window)),
                 batch, rank.pieces());
    }
    scores.sum(rank);
    if (world.rank() == 0) result = scores.evaluation();
  });
  return *result;
}

}  // namespace ringlet
