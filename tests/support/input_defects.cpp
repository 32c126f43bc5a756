#include <algorithm>

#include "tests/support/defects.h"

namespace ringlet::test {
namespace {

/// change(batch, window, pieces) spoils the rows of a rank.
template <class Change>
RingParts with_batch(const Change& change) {
  RingParts parts = real_parts();
  parts.batch = [real = parts.batch, change](const VerifyWindow& window,
                                             std::span<const Piece> pieces) {
    Batch batch = real(window, pieces);
    change(batch, window, pieces);
    return batch;
  };
  return parts;
}

/// change(label, window, position) spoils one label.
template <class Change>
RingParts with_labels(const Change& change) {
  return with_batch(
      [change](Batch& batch, const VerifyWindow& window, std::span<const Piece> pieces) {
        for (const Piece& piece : pieces) {
          for (int64_t i = 0; i < piece.row_count; ++i) {
            change(batch.labels[size_t(piece.first_row + i)], window, piece.position(i));
          }
        }
      });
}

RingParts labels_made_after_the_split() {
  return with_batch([](Batch& batch, const VerifyWindow&, std::span<const Piece>) {
    if (batch.tokens.empty()) return;
    std::ranges::rotate_copy(batch.tokens, batch.tokens.begin() + 1, batch.labels.begin());
  });
}

/// The tokens are right, the second chunk of every rank believes itself one position further back.
RingParts second_chunk_off_by_one() {
  RingParts parts = real_parts();
  const auto shifted = [](std::vector<Piece> pieces, int64_t by) {
    for (size_t i = 1; i < pieces.size(); ++i) pieces[i].first_position += by;
    return pieces;
  };
  parts.layout = [real = parts.layout, shifted](const RingSetup& setup, int64_t length) {
    SequenceLayout layout = real(setup, length);
    for (std::vector<Piece>& pieces : layout.ranks) pieces = shifted(pieces, -1);
    return layout;
  };
  parts.batch = [real = parts.batch, shifted](const VerifyWindow& window,
                                              std::span<const Piece> pieces) {
    return real(window, shifted({pieces.begin(), pieces.end()}, 1));
  };
  return parts;
}

/// The longest document sees the one before it.
RingParts start_missing() {
  return with_batch([](Batch& batch, const VerifyWindow& window, std::span<const Piece>) {
    std::vector<int64_t>& starts = batch.window.document_starts;
    const auto length_of = [&](size_t document) {
      const bool last = document + 1 == starts.size();
      return (last ? window.window.token_count : starts[document + 1]) - starts[document];
    };
    size_t longest = 0;
    for (size_t i = 1; i < starts.size(); ++i) {
      if (longest == 0 || length_of(i) > length_of(longest)) longest = i;
    }
    if (longest > 0) starts.erase(starts.begin() + int64_t(longest));
  });
}

RingParts mean_of_means() {
  RingParts parts = real_parts();
  parts.rules = [](const Batch& batch) {
    StepRules rules;
    const auto own = std::ranges::count_if(batch.labels, [](int32_t label) { return label >= 0; });
    rules.loss_scale = [own](int64_t) { return 1 / double(own * kDefectRing); };
    return rules;
  };
  return parts;
}

RingParts clip_by_squared_norm() {
  RingParts parts = real_parts();
  parts.rules = [](const Batch&) {
    StepRules rules;
    rules.clip_factor = [](double squares, double clip_norm) {
      return squares > clip_norm ? clip_norm / squares : 1.0;
    };
    return rules;
  };
  return parts;
}

}  // namespace

std::vector<Defect> input_defects() {
  using enum VerifyMask;
  const auto drop_last = [](int32_t& label, const VerifyWindow& window, int64_t position) {
    if (position + 1 == window.window.token_count) label = -1;
  };
  const auto score_padding = [](int32_t& label, const VerifyWindow&, int64_t) {
    label = std::max(label, 0);
  };
  const auto predict_neighbour = [](int32_t& label, const VerifyWindow& window, int64_t position) {
    if (position + 1 < window.window.token_count) label = window.tokens[size_t(position + 1)];
  };
  return {
      {"second chunk's positions off by one", second_chunk_off_by_one(), causal, "attention output",
       "layer 0", "rotary table"},
      {"labels shifted after the split", labels_made_after_the_split(), causal, "loss", "position"},
      {"last valid token dropped", with_labels(drop_last), documents, "loss", "position 87 "},
      {"padding scored", with_labels(score_padding), documents, "loss", "position"},
      {"a document's end predicts its neighbour", with_labels(predict_neighbour), documents, "loss",
       "position"},
      {"a document sees its neighbour", start_missing(), documents, "attention output", "layer 0",
       "attention output"},
      {"mean of the ranks' means", mean_of_means(), documents, "dV", "layer 1"},
      {"clipped by the squared norm", clip_by_squared_norm(), causal, "next weights", ""},
  };
}

std::vector<Defect> all_defects() {
  std::vector<Defect> all = attention_defects();
  for (const auto& more : {device_defects(), message_defects(), input_defects()}) {
    all.insert(all.end(), more.begin(), more.end());
  }
  return all;
}

}  // namespace ringlet::test
