#pragma once

#include <vector>

#include "tests/support/ring_case.h"

namespace ringlet::test {

/// One attention layer over a whole sequence, in global order: to be spread over a ring.
struct RingAttentionCase {
  HeadShape shape;
  Mask mask;
  int64_t length;
  std::vector<float> q, k, v, d_output;  // [length, heads or kv_heads, head_dim]
};

/// Outputs and gradients as the inputs; lse: [length, heads]. All 0 at first.
template <class T>
struct RingAttentionValues {
  std::vector<T> output, lse, dq, dk, dv;

  explicit RingAttentionValues(const RingAttentionCase& c)
      : output(c.q.size()),
        lse(c.length * c.shape.heads),
        dq(c.q.size()),
        dk(c.k.size()),
        dv(c.v.size()) {}
};

/// Standard normal inputs; equal arguments give equal values.
RingAttentionCase random_attention(const HeadShape& shape, const Mask& mask, int64_t length);

/// Causal, a window, documents of growing lengths, both.
std::vector<Mask> masks_for(int64_t length);

using Rounding = float (*)(float);

/// Forward and backward through the ring of the product, ranks on threads.
/// `stored`: what becomes of the output before the backward pass reads it, and of the gradients
/// at the end; nullptr: nothing. `pieces`: as of make_layout.
RingAttentionValues<float> attend_on_ring(const RingAttentionCase& c, Layout layout, int ring_size,
                                          const MakeBackend& make_backend = plain_backend,
                                          Rounding stored = nullptr, int pieces = 0);

/// The definition: dense softmax attention in double, position by position.
RingAttentionValues<double> attend_densely(const RingAttentionCase& c);

}  // namespace ringlet::test
