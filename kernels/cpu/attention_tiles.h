#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/backend.h"
#include "kernels/op_shapes.h"

namespace ringlet::cpu {

inline constexpr int64_t kTile = 64;
/// Transposed query tiles that share one sweep over the keys: as many as fit, so that they stay in
/// the L2 cache.
inline constexpr int64_t kPanelFloats = kTile * shapes::kMaxHeadDim;
inline constexpr int64_t kMaxGroup = 16;
inline int64_t group_size(int64_t head_dim) { return std::min(kMaxGroup, shapes::kMaxHeadDim / head_dim); }

/// Rows that the first tile of a piece lacks: tiles begin where position / stride is a multiple of
/// kTile.
inline int64_t rows_before(const Piece& piece) {
  return piece.first_position / piece.stride % kTile;
}

/// A tile of a piece as a piece, with first_row counted from the first row of the whole piece.
inline Piece tile_at(const Piece& piece, int64_t index) {
  const int64_t begin = std::max<int64_t>(index * kTile - rows_before(piece), 0);
  const int64_t end = std::min((index + 1) * kTile - rows_before(piece), piece.row_count);
  return {piece.position(begin), piece.stride, begin, end - begin};
}

inline int64_t tile_count(const Piece& piece) {
  return (rows_before(piece) + piece.row_count + kTile - 1) / kTile;
}

/// How many rows of a piece have a position below `position`.
inline int64_t rows_below(const Piece& piece, int64_t position) {
  const int64_t distance = position - piece.first_position + piece.stride - 1;
  return distance < 0 ? 0 : std::min(distance / piece.stride, piece.row_count);
}

/// A half-open range of indices.
struct Range {
  int64_t begin, end;
};

/// The tiles of a piece that hold positions of [first, last].
inline Range tiles_between(const Piece& piece, int64_t first, int64_t last) {
  const Range rows{rows_below(piece, first), rows_below(piece, last + 1)};
  if (rows.begin >= rows.end) return {0, 0};
  return {(rows_before(piece) + rows.begin) / kTile,
          (rows_before(piece) + rows.end - 1) / kTile + 1};
}

/// A tile of queries of one head.
struct QueryTile {
  int64_t head;
  int64_t row;  // of the rank
  Piece rows;
  const int64_t* first_visible;  // of its rows

  int64_t lowest_visible() const { return first_visible[0]; }
};

/// The query tiles of one KV head, numbered upwards: tile by tile, within a tile head by head.
class QueryTiles {
 public:
  QueryTiles(const AttentionStep& step, int64_t kv_head)
      : step_(step), heads_(step.shape.heads / step.shape.kv_heads), kv_head_(kv_head) {}

  int64_t count() const { return tile_count(step_.queries) * heads_; }
  QueryTile operator[](int64_t index) const {
    const Piece rows = tile_at(step_.queries, index / heads_);
    const int64_t row = step_.queries.first_row + rows.first_row;
    return {kv_head_ * heads_ + index % heads_, row, rows,
            step_.first_visible.as<int64_t>().data() + row};
  }

 private:
  const AttentionStep& step_;
  int64_t heads_, kv_head_;
};

/// Groups of query tiles that each KV head of a step has.
inline int64_t group_count(const AttentionStep& step) {
  const int64_t size = group_size(step.shape.head_dim);
  return (QueryTiles(step, 0).count() + size - 1) / size;
}

enum class Visible : uint8_t { none, some, all };

inline Visible visibility(const QueryTile& queries, const Piece& keys) {
  const int64_t count = queries.rows.row_count;
  if (keys.first_position > queries.rows.last_position()) return Visible::none;
  if (keys.last_position() < queries.lowest_visible()) return Visible::none;
  const bool all = keys.last_position() <= queries.rows.first_position &&
                   keys.first_position >= queries.first_visible[count - 1];
  return all ? Visible::all : Visible::some;
}

/// For each row of a query tile, which rows [begin, end) of a key tile it sees; as f32, to compare
/// in vectors.
struct VisibleRows {
  alignas(64) float begin[kTile], end[kTile];

  VisibleRows(const QueryTile& queries, const Piece& keys) {
    for (int64_t i = 0; i < kTile; ++i) {
      const bool used = i < queries.rows.row_count;
      begin[i] = used ? float(rows_below(keys, queries.first_visible[i])) : 0.0f;
      end[i] = used ? float(rows_below(keys, queries.rows.position(i) + 1)) : 0.0f;
    }
  }
};

}  // namespace ringlet::cpu
