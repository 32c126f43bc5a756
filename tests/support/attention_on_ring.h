#pragma once

#include <vector>

#include "tests/support/ring_case.h"

namespace ringlet::test {

/// One attention layer over a whole sequence, in global order.
struct RingAttentionCase {
  HeadShape shape;
  Mask mask;
  int64_t length;
  std::vector<float> q, k, v, d_output;  // [length, heads or kv_heads, head_dim]
};

/// output, dq as q; dk, dv as k; lse: [length, heads].
struct RingAttentionResult {
  std::vector<float> output, lse, dq, dk, dv;
};

/// Normal random numbers, the same for every ring.
RingAttentionCase make_attention_case(const HeadShape& shape, const Mask& mask, int64_t length);

/// Causal, a window, documents of growing lengths, both.
std::vector<Mask> masks_for(int64_t length);

/// Forward and backward on a ring of threads. Outputs are poisoned beforehand.
RingAttentionResult attend_on_ring(const RingAttentionCase& c, Layout layout, int ring_size,
                                   const MakeBackend& make_backend);

}  // namespace ringlet::test
