#pragma once

#include <memory>

#include "kernels/backend.h"

namespace ringlet {

/// `inner`, whose operations compute on f32, and beside it the same operations on bf16: inputs are widened,
/// `inner` computes, outputs are rounded once. Bits: those of `inner` on the widened inputs, rounded. Calls
/// on f32 pass straight through. An operation of `inner` must be done when its call returns; its copies and
/// lookups (copy, copy_rows, embedding_forward) must take bf16 themselves. Widened operands stand in memory
/// of this backend's own, outside of the arena, that grows with the largest ones seen.
std::unique_ptr<Backend> make_bf16_storage(std::unique_ptr<Backend> inner);

}  // namespace ringlet
