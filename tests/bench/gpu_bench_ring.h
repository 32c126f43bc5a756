#pragma once

#include "model/ring_attention.h"
#include "tests/bench/gpu_bench.h"

namespace ringlet::bench {

/// One rank of a ring that shares the GPU with the others: its own stream and memory, and one layer
/// of attention in bf16, gradients of q, keys and values in f32, as a model calls it.
struct RingRank {
  /// The arena fits. q, kv and d_output are not set. Everything named must outlive this.
  RingRank(const CudaInterface& interface, const HeadShape& shape, const SequenceLayout& layout,
           Comm& ring, Trace& trace, CudaAttention attention = CudaAttention::automatic);
  void fill_with_random_numbers();
  void forward();
  /// delta, then the ring; adds to dq and dkv. After forward.
  void backward();

  HeadShape shape;
  Gpu gpu;
  const ringlet::Mask mask;
  Step step;
  Tensor q, kv, d_output, output, lse, delta, dq, dkv;  // as in model/ring_attention.h
};

/// 8k, 32k.
std::string thousands(int64_t tokens);

}  // namespace ringlet::bench
