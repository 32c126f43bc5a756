#include "model/sequence_layout.h"

#include <algorithm>
#include <array>
#include <limits>

#include "kernels/causal_pairs.h"
#include "kernels/check.h"

namespace ringlet {
namespace {

constexpr int64_t kTile = 64;
constexpr std::array kNames{"contiguous", "zigzag", "striped"};

int64_t divide_up(int64_t value, int64_t by) { return value / by + (value % by != 0); }

/// Appends positions [begin, end) to a rank, unless there are none.
void append(std::vector<Piece>& pieces, int64_t begin, int64_t end) {
  if (begin >= end) return;
  const int64_t first_row = pieces.empty() ? 0 : pieces.back().first_row + pieces.back().row_count;
  pieces.push_back({begin, 1, first_row, end - begin});
}

int64_t whole_tiles(int64_t rows) { return divide_up(rows, kTile) * kTile; }

std::vector<Piece> contiguous_rank(int64_t length, int ring_size, int rank) {
  const int64_t chunk = whole_tiles(divide_up(length, ring_size));
  const int64_t begin = rank * chunk, middle = begin + whole_tiles(chunk / 2), end = begin + chunk;
  std::vector<Piece> pieces;
  append(pieces, begin, std::min(length, middle));
  append(pieces, middle, std::min(length, end));
  return pieces;
}

std::vector<Piece> zigzag_rank(int64_t length, int ring_size, int rank) {
  const int64_t chunks = 2 * int64_t(ring_size);
  const auto bound = [&](int64_t chunk) {
    return chunk * (length / chunks) + std::min(chunk, length % chunks);
  };
  std::vector<Piece> pieces;
  const int64_t early = rank, late = chunks - 1 - rank;
  if (early + 1 == late) {  // they touch
    append(pieces, bound(early), bound(late + 1));
  } else {
    append(pieces, bound(early), bound(early + 1));
    append(pieces, bound(late), bound(late + 1));
  }
  return pieces;
}

std::vector<Piece> striped_rank(int64_t length, int ring_size, int rank) {
  if (rank >= length) return {};
  return {{rank, ring_size, 0, divide_up(length - rank, ring_size)}};
}

/// Cuts each piece into equal parts, of whole tiles where they are longer than one or have to be, for `count` in all, or
/// about as many.
void cut(std::vector<Piece>& pieces, int64_t count, bool in_tiles) {
  if (pieces.empty()) return;
  const int64_t parts = divide_up(count, std::ssize(pieces));
  std::vector<Piece> result;
  for (const Piece& piece : pieces) {
    const int64_t even = divide_up(piece.row_count, parts);
    const int64_t rows = in_tiles || even > kTile ? whole_tiles(even) : even;
    for (int64_t first = 0; first < piece.row_count; first += rows) {
      result.push_back({piece.position(first), piece.stride, piece.first_row + first,
                        std::min(rows, piece.row_count - first)});
    }
  }
  pieces = std::move(result);
}

}  // namespace

const char* name_of(Layout layout) { return kNames.at(size_t(layout)); }

Layout layout_named(std::string_view name) {
  const auto found = std::find(kNames.begin(), kNames.end(), name);
  if (found == kNames.end()) {
    throw UsageError("there is no layout '" + std::string(name) + "'",
                     "choose contiguous, zigzag or striped");
  }
  return Layout(found - kNames.begin());
}

int64_t SequenceLayout::rows(int rank) const {
  int64_t count = 0;
  for (const Piece& piece : ranks.at(size_t(rank))) count += piece.row_count;
  return count;
}

int64_t SequenceLayout::max_rows() const {
  int64_t most = 0;
  for (int rank = 0; rank < ring_size(); ++rank) most = std::max(most, rows(rank));
  return most;
}

int SequenceLayout::rank_of(int64_t position) const {
  for (int rank = 0; rank < ring_size(); ++rank) {
    for (const Piece& piece : ranks[size_t(rank)]) {
      const int64_t offset = position - piece.first_position;
      const bool on_stride = offset >= 0 && offset % piece.stride == 0;
      if (on_stride && offset / piece.stride < piece.row_count) return rank;
    }
  }
  CHECK(false, "no rank holds position ", position, " of ", length);
}

int SequenceLayout::most_pieces() const {
  size_t most = 0;
  for (const std::vector<Piece>& pieces : ranks) most = std::max(most, pieces.size());
  return int(most);
}

SequenceLayout make_layout(Layout layout, int64_t length, int ring_size, int pieces) {
  CHECK(length >= 1 && ring_size >= 1 && pieces >= 0, "length ", length, ", ring size ", ring_size, ", pieces ", pieces);
  SequenceLayout result{length, {}, layout == Layout::contiguous ? kTile : 0};
  for (int rank = 0; rank < ring_size; ++rank) {
    switch (layout) {
      case Layout::contiguous:
        result.ranks.push_back(contiguous_rank(length, ring_size, rank));
        break;
      case Layout::zigzag:
        result.ranks.push_back(zigzag_rank(length, ring_size, rank));
        break;
      case Layout::striped:
        result.ranks.push_back(striped_rank(length, ring_size, rank));
        break;
    }
    if (ring_size > 1 && pieces > 0) cut(result.ranks.back(), pieces, result.reproducible());
  }
  return result;
}

std::pmr::vector<Piece> joined(std::span<const Piece> pieces, std::pmr::memory_resource* memory) {
  std::pmr::vector<Piece> result(memory);
  for (const Piece& piece : pieces) {
    Piece* const last = result.empty() ? nullptr : &result.back();
    const bool follows = last != nullptr && last->stride == piece.stride &&
                         last->position(last->row_count) == piece.first_position &&
                         last->first_row + last->row_count == piece.first_row;
    if (follows) {
      last->row_count += piece.row_count;
    } else {
      result.push_back(piece);
    }
  }
  return result;
}

namespace {

/// The rows of a piece whose positions are in [begin, end).
Piece part_within(const Piece& piece, int64_t begin, int64_t end) {
  const auto first_at = [&](int64_t position) {
    const int64_t behind = std::max<int64_t>(0, position - piece.first_position);
    return std::min(piece.row_count, behind / piece.stride + (behind % piece.stride > 0 ? 1 : 0));
  };
  const int64_t first = first_at(begin), rows = first_at(end) - first;
  return {piece.position(first), piece.stride, piece.first_row + first, rows};
}

}  // namespace

int64_t Mask::first_visible(int64_t position) const {
  const auto next = std::upper_bound(document_starts.begin(), document_starts.end(), position);
  CHECK(next != document_starts.begin(), "position ", position, " is before the first document");
  const int64_t document_start = *std::prev(next);
  return window > 0 ? std::max(document_start, position - window + 1) : document_start;
}

bool any_visible(const Mask& mask, const Piece& queries, const Piece& keys) {
  if (queries.row_count == 0 || keys.row_count == 0) return false;
  // first_visible never falls, so of all queries not before the first key the earliest sees most.
  const int64_t behind = std::max<int64_t>(0, keys.first_position - queries.first_position);
  const int64_t query = divide_up(behind, queries.stride);
  if (query >= queries.row_count) return false;
  return mask.first_visible(queries.position(query)) <= keys.last_position();
}

std::pmr::vector<Piece> query_runs(const Mask& mask, std::span<const Piece> queries, const Piece& keys,
                                  std::pmr::memory_resource* memory) {
  std::pmr::vector<Piece> runs(memory);
  for (const Piece& piece : queries) {
    if (!any_visible(mask, piece, keys)) continue;
    Piece* const last = runs.empty() ? nullptr : &runs.back();
    // first_visible never falls: what the later piece sees to its end, the one before it sees too.
    const bool sees_all = last != nullptr && keys.last_position() < last->first_position &&
                          mask.first_visible(piece.last_position()) <= keys.first_position;
    if (sees_all && last->stride == piece.stride && last->first_row + last->row_count == piece.first_row) {
      last->row_count += piece.row_count;
    } else {
      runs.push_back(piece);
    }
  }
  return runs;
}

int64_t visible_pairs(const Mask& mask, const Piece& queries, const Piece& keys) {
  if (queries.row_count == 0 || keys.row_count == 0) return 0;
  const std::vector<int64_t>& starts = mask.document_starts;
  // Documents that hold a query and a key.
  const int64_t first = std::max(queries.first_position, keys.first_position);
  const int64_t last = std::min(queries.last_position(), keys.last_position());
  auto document = std::upper_bound(starts.begin(), starts.end(), first) - starts.begin() - 1;
  int64_t pairs = 0;
  for (; document < std::ssize(starts) && starts[document] <= last; ++document) {
    const bool at_end = document + 1 == std::ssize(starts);
    const int64_t end = at_end ? std::numeric_limits<int64_t>::max() : starts[document + 1];
    const Piece of_document = part_within(queries, starts[document], end);
    const Piece seen = part_within(keys, starts[document], end);
    pairs += causal_pairs(of_document, seen);
    if (mask.window == 0) continue;
    Piece left_behind = of_document;
    left_behind.first_position -= mask.window;
    pairs -= causal_pairs(left_behind, seen);
  }
  return pairs;
}

}  // namespace ringlet
