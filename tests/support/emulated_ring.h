#pragma once

#include "tests/support/ring_attention_case.h"

namespace ringlet::test {

inline float keep_f32(float value) { return value; }

/// What a ring keeps of its outputs and gradients. LSE is f32 always.
struct RingRounding {
  Rounding stored;       // those of one block, before they are merged; the merged ones at the end
  Rounding accumulator;  // those so far, after every merge
};

/// Ring attention whose blocks are attended one by one and merged afterwards, as around a kernel
/// that returns a normalised output and its LSE. Emulated: one thread, plain f32 loops. The blocks
/// and their order are those of model/ring_attention.h, the own block's dK and dV last. Merging
/// follows from the LSE:
///   output += sigmoid(lse_block - lse) * (output_block - output);  lse = log(exp(lse) +
///   exp(lse_block))
/// The backward pass reads the output as it is stored.
RingAttentionValues<float> attend_on_emulated_ring(const RingAttentionCase& c, Layout layout,
                                                   int ring_size, const RingRounding& rounding);

}  // namespace ringlet::test
