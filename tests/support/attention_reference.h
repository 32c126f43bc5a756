#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "kernels/backend.h"

namespace ringlet::test {

/// Inputs of one attention layer in double, all positions named one by one.
struct ReferenceInput {
  HeadShape shape;
  std::vector<int64_t> query_positions, first_visible;  // of each query row
  std::vector<int64_t> key_positions;                   // of each key row
  std::vector<double> q;                                // [heads, queries, head_dim]
  std::vector<double> k, v;                             // [kv_heads, keys, head_dim]
  std::vector<double> d_output;  // [queries, heads * head_dim]; empty: no backward pass
};

struct ReferenceResult {
  std::vector<double> output;      // [queries, heads * head_dim]
  std::vector<double> lse;         // [heads, queries]; -infinity: saw nothing
  std::vector<double> dq, dk, dv;  // as q, k, v
};

/// Attention by its definition: dense, in double, one query of one head after another.
ReferenceResult attention_reference(const ReferenceInput& input);

/// One attention layer over global positions. Every element follows from its head, position and
/// column alone, so that any way to cut the sequence meets the same values.
struct AttentionCase {
  HeadShape shape;
  std::vector<Piece> queries, keys;  // key pieces are laid out one after another
  std::function<int64_t(int64_t)> first_visible = [](int64_t) { return 0; };
  double scale = 1;            // of q and k
  Dtype dtype = Dtype::f32;    // bf16: all values are rounded to it
  uint64_t seed = 1;

  std::vector<float> q() const;
  std::vector<float> k(const std::vector<Piece>& pieces) const;  // [kv_heads, rows, head_dim]
  std::vector<float> v(const std::vector<Piece>& pieces) const;
  std::vector<float> d_output() const;
  std::vector<int64_t> first_visible_of_rows() const;
  ReferenceInput reference_input() const;
};

/// Consecutive pieces of the given lengths from position 0.
std::vector<Piece> pieces_of(const std::vector<int64_t>& lengths);
/// The positions of all rows, piece by piece.
std::vector<int64_t> positions_of(const std::vector<Piece>& pieces);

/// A case of one piece that attends to itself.
AttentionCase one_piece(const HeadShape& shape, int64_t length);

}  // namespace ringlet::test
