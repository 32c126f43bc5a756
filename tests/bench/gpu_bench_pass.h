#pragma once

#include <vector>

#include "tests/bench/gpu_bench.h"

namespace ringlet::bench {

/// A rank's tensors, filled; bf16 as in training.
struct Layer {
  Tensor q, d_output, first_visible, output, lse, delta, dq;
  AttentionState state;
  std::vector<Tensor> kv, dkv;  // one of each for every piece of keys
};

/// Attention of some pieces of queries on some pieces of keys, last keys first, under a causal mask: one step for each run
/// of queries that sees a piece of keys.
struct Pass {
  HeadShape shape;
  std::vector<Piece> queries, keys;
  Layer layer;

  /// The steps alone.
  void forward(Gpu& gpu) const;
  void backward(Gpu& gpu) const;
  /// start, steps, finish: all that a layer calls.
  void whole_forward(Gpu& gpu) const;
  /// delta, steps. After whole_forward.
  void whole_backward(Gpu& gpu) const;
};

/// In the GPU's arena.
Pass make_pass(Gpu& gpu, const HeadShape& shape, std::vector<Piece> queries,
               std::vector<Piece> keys);

struct Times {
  double forward_ms = 0, backward_ms = 0;
  double both_ms() const { return forward_ms + backward_ms; }
};

/// The steps alone.
Times time_steps(Gpu& gpu, const Pass& pass);

}  // namespace ringlet::bench
