#include "data/batch.h"

#include <fmt/core.h>

#include <algorithm>
#include <array>

#include "kernels/check.h"

namespace ringlet {

namespace {

constexpr int64_t kBlockPositions = 1 << 14;

WindowPlan plan_of(const Corpus& corpus, int64_t window_tokens) try {
  return {corpus.document_offsets(), window_tokens};
} catch (const Error& error) {
  throw Error(fmt::format("{}: {}", corpus.path(), error.what()), error.advice);
}

}  // namespace

WindowReader::WindowReader(const Corpus& corpus, int64_t window_tokens)
    : corpus_(corpus), plan_(plan_of(corpus, window_tokens)) {}

int64_t WindowReader::label_count(int64_t window_index) const {
  const auto [first_token, token_count] = plan_.tokens(window_index);
  const auto answers = corpus_.answers();
  if (answers.empty()) return token_count;
  // a label stands one place before its token
  const auto first = std::ranges::upper_bound(answers, first_token);
  return std::upper_bound(first, answers.end(), first_token + token_count) - first;
}

Batch WindowReader::read(int64_t window_index, std::span<const Piece> pieces) const {
  Batch batch;
  read(window_index, pieces, batch);
  return batch;
}

void WindowReader::read(int64_t window_index, std::span<const Piece> pieces, Batch& batch) const {
  plan_.window(window_index, batch.window);
  batch.tokens.clear();
  batch.labels.clear();
  size_t rows = 0;
  for (const Piece& piece : pieces) rows += size_t(piece.row_count);
  batch.tokens.reserve(rows);
  batch.labels.reserve(rows);
  for (const Piece& piece : pieces) {
    CHECK(piece.first_position >= 0 && piece.stride >= 1 && piece.row_count >= 1 &&
              piece.last_position() < plan_.window_tokens(),
          "a piece from ", piece.first_position, " with ", piece.row_count, " rows");
    read_piece(piece, batch);
  }
}

void WindowReader::read_piece(const Piece& piece, Batch& batch) const {
  const auto offsets = corpus_.document_offsets();
  const int64_t first_token = batch.window.first_token;
  const int64_t end = std::min(piece.last_position() + 1, batch.window.token_count);
  const auto answers = corpus_.answers();
  auto answer = std::ranges::upper_bound(answers, first_token + piece.first_position);
  std::array<int32_t, kBlockPositions + 1> block;
  auto document_end =
      std::upper_bound(offsets.begin(), offsets.end(), first_token + piece.first_position);
  int64_t row = 0;
  for (; row < piece.row_count && piece.position(row) < end;) {
    const int64_t start = piece.position(row);
    const int64_t stop = std::min(end, start + kBlockPositions);
    // one more: the label of the last position
    const int64_t available = corpus_.token_count() - first_token;
    corpus_.read(first_token + start, std::span(block).first(size_t(std::min(stop + 1, available) - start)));
    for (; row < piece.row_count && piece.position(row) < stop; ++row) {
      const int64_t position = piece.position(row);
      while (*document_end <= first_token + position) ++document_end;
      const bool last = *document_end == first_token + position + 1;
      batch.tokens.push_back(block[size_t(position - start)]);
      while (answer != answers.end() && *answer <= first_token + position) ++answer;
      const bool counts =
          answers.empty() || (answer != answers.end() && *answer == first_token + position + 1);
      batch.labels.push_back(!counts ? -1
                             : last  ? int32_t(corpus_.end_of_document())
                                     : block[size_t(position - start + 1)]);
    }
  }
  for (; row < piece.row_count; ++row) {
    batch.tokens.push_back(0);
    batch.labels.push_back(-1);
  }
}

}  // namespace ringlet
