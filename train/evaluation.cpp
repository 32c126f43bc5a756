#include "train/evaluation.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <numbers>

namespace ringlet {
namespace {

/// The mask cut at every multiple of `context` plus `offset`, on top of its documents.
Mask cut_mask(const Mask& mask, int64_t length, int64_t context, int64_t offset) {
  Mask cut = mask;
  for (int64_t start = offset; start < length; start += context) cut.document_starts.push_back(start);
  std::ranges::sort(cut.document_starts);
  const auto repeated = std::ranges::unique(cut.document_starts);
  cut.document_starts.erase(repeated.begin(), repeated.end());
  return cut;
}

/// Sums of one block of tokens, as they travel in an all-reduce.
struct BlockSums {
  double tokens = 0, full = 0, shortened = 0;
};

ContextComparison summarize(std::span<const BlockSums> blocks, int64_t context) {
  ContextComparison result{.context = context};
  double tokens = 0;
  int64_t used_blocks = 0;
  for (const BlockSums& block : blocks) {
    tokens += block.tokens;
    result.full_loss += block.full;
    result.short_loss += block.shortened;
    used_blocks += block.tokens > 0;
  }
  result.tokens = int64_t(tokens);
  result.full_loss /= tokens;
  result.short_loss /= tokens;
  result.difference = result.short_loss - result.full_loss;
  // A ratio of sums over blocks: neighbouring tokens are not independent, distant blocks nearly are.
  double squares = 0;
  for (const BlockSums& block : blocks) {
    const double residual = block.shortened - block.full - result.difference * block.tokens;
    squares += residual * residual;
  }
  result.standard_error =
      used_blocks < 2 ? std::numeric_limits<double>::quiet_NaN()
                      : std::sqrt(squares * double(used_blocks) / double(used_blocks - 1)) / tokens;
  return result;
}

/// Adds one rank's rows of a window to the blocks of the whole comparison.
void add_blocks(std::span<const Piece> pieces, const Batch& batch, int64_t context,
                const std::array<std::vector<float>, 3>& losses, std::span<BlockSums> blocks) {
  const int64_t half = context / 2;
  for (const Piece& piece : pieces) {
    for (int64_t i = 0; i < piece.row_count; ++i) {
      const int64_t row = piece.first_row + i, position = piece.position(i);
      if (position < context || batch.labels[row] < 0) continue;
      const bool second_half = position % context >= half;  // of a piece that starts at a multiple
      BlockSums& block = blocks[position / half];
      block.tokens += 1;
      block.full += losses[0][row];
      block.shortened += losses[second_half ? 1 : 2][row];
    }
  }
}

}  // namespace

void load_weights(const Checkpoint& checkpoint, const Parameters& parameters) {
  std::vector<float> values;
  for (const Parameter& parameter : parameters.all()) {
    values.resize(parameter.weight.size());
    checkpoint.read_weights(parameter.name, values);
    parameters.set(parameter, values);
  }
}

Mask mask_of(const Window& window, MaskRule rule, int64_t sliding_window) {
  Mask mask;
  set_mask(window, rule, sliding_window, mask);
  return mask;
}

void set_mask(const Window& window, MaskRule rule, int64_t sliding_window, Mask& mask) {
  mask.window = sliding_window;
  if (rule == MaskRule::document) mask.document_starts = window.document_starts;
  else mask.document_starts.assign(1, 0);
}

void add_losses(std::span<const float> losses, const Batch& batch, std::span<const Piece> pieces,
                PositionBins& bins) {
  const std::vector<int64_t>& starts = batch.window.document_starts;
  for (const Piece& piece : pieces) {
    auto next = std::ranges::upper_bound(starts, piece.first_position);
    for (int64_t i = 0; i < piece.row_count; ++i) {
      const int64_t row = piece.first_row + i, position = piece.position(i);
      while (next != starts.end() && *next <= position) ++next;
      if (batch.labels[row] >= 0) bins.add(position, position - *std::prev(next), losses[row]);
    }
  }
}

std::vector<float> score(const ModelRank& rank, const Batch& batch, const Mask& mask,
                         const SeeLogits& see) {
  Backend& device = rank.context.device;
  const ArenaScope scope(device.arena());
  const GptConfig& config = rank.gpt.config();
  Step step(rank.context, rank.settings, Pass::evaluation, rank.layout, mask, config.rope_base,
            config.heads.head_dim, batch.tokens, batch.labels);
  rank.gpt.evaluate(step, see);
  std::vector<float> losses(step.rows());
  read<float>(device, step.losses, losses);
  return losses;
}

void sum_over_world(const ModelRank& rank, std::span<double> values) {
  Backend& device = rank.context.device;
  const ArenaScope scope(device.arena());
  const Tensor sums = device.arena().allocate("inputs", Dtype::f64, {int64_t(values.size()), 1, 1, 1});
  upload<double>(device, values, sums);
  const Event summed = rank.world.all_reduce(sums, device.record());
  device.arena().hold(sums, summed);
  device.wait(summed);
  read<double>(device, sums, values);
}

Evaluation evaluate(const ModelRank& rank, const WindowReader& reader, int64_t window_count,
                    MaskRule rule, int64_t sliding_window) {
  PositionBins bins(rank.layout.length);
  std::vector<double> right = marks_of(reader, window_count);
  for (int64_t index = rank.ring_index(); index < window_count; index += rank.rings()) {
    const Batch batch = reader.read(index, rank.pieces());
    const Mask mask = mask_of(batch.window, rule, sliding_window);
    const auto see = [&](int64_t first_row, const Tensor& logits) {
      mark_right_answers(reader.corpus(), batch, rank.pieces(), first_row,
                         {rank.context.device, logits}, right);
    };
    add_losses(score(rank, batch, mask, right.empty() ? SeeLogits() : see), batch, rank.pieces(), bins);
  }
  std::vector<double> flat = bins.to_flat();
  sum_over_world(rank, flat);
  Evaluation result{PositionBins::from_flat(rank.layout.length, flat), {}};
  if (right.empty()) return result;
  // part by part, in little memory
  constexpr size_t kPart = 1024;
  for (size_t first = 0; first < right.size(); first += kPart) {
    sum_over_world(rank, std::span(right).subspan(first, std::min(kPart, right.size() - first)));
  }
  result.answers = AnswerScores(reader.corpus(), right);
  return result;
}

std::optional<double> bits_per_byte(const Corpus& corpus, const WindowReader& reader,
                                    int64_t window_count, const PositionBins& bins) {
  const std::unique_ptr<Tokenizer> tokenizer = corpus.tokenizer();
  const Piece whole{0, 1, 0, reader.plan().window_tokens()};
  int64_t bytes = 0;
  for (int64_t index = 0; index < window_count; ++index) {
    const auto of_window = tokenizer->text_bytes(reader.read(index, {&whole, 1}).labels);
    if (!of_window) return {};
    bytes += *of_window;
  }
  if (bytes == 0) return {};
  return bins.mean() * double(bins.count()) / (double(bytes) * std::numbers::ln2);
}

ContextComparison compare_context(const ModelRank& rank, const WindowReader& reader,
                                  int64_t window_count, MaskRule rule, int64_t sliding_window,
                                  int64_t context) {
  const int64_t half = context / 2, length = rank.layout.length;
  CHECK(half >= 1, "a context of ", context, " has no half");
  const int64_t blocks_per_window = (length + half - 1) / half;
  std::vector<BlockSums> blocks(blocks_per_window * window_count);
  for (int64_t index = rank.ring_index(); index < window_count; index += rank.rings()) {
    const Batch batch = reader.read(index, rank.pieces());
    const Mask mask = mask_of(batch.window, rule, sliding_window);
    const std::array<std::vector<float>, 3> losses{
        score(rank, batch, mask), score(rank, batch, cut_mask(mask, length, context, 0)),
        score(rank, batch, cut_mask(mask, length, context, half))};
    add_blocks(rank.pieces(), batch, context, losses,
               std::span(blocks).subspan(index * blocks_per_window, blocks_per_window));
  }
  std::vector<double> flat;
  for (const BlockSums& block : blocks) {
    flat.insert(flat.end(), {block.tokens, block.full, block.shortened});
  }
  sum_over_world(rank, flat);
  for (size_t i = 0; i < blocks.size(); ++i) blocks[i] = {flat[3 * i], flat[3 * i + 1], flat[3 * i + 2]};
  return summarize(blocks, context);
}

}  // namespace ringlet
