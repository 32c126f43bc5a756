#pragma once

#include <cstdint>
#include <memory>

#include "kernels/backend.h"

namespace ringlet {

/// computed; or counted: operands take their room in the arena, and nothing is computed (on a device that is dry).
enum class Widening : uint8_t { computed, counted };

/// `inner`, whose operations compute on f32, and beside it the same operations on bf16: inputs are widened,
/// `inner` computes, outputs are rounded once. Bits: those of `inner` on the widened inputs, rounded. Calls
/// on f32 pass straight through. An operation of `inner` must be done when its call returns; its copies and
/// lookups (copy, copy_rows, embedding_forward) must take bf16 themselves. Widened operands stand in the arena of
/// `inner` as long as the operation takes.
std::unique_ptr<Backend> make_bf16_storage(std::unique_ptr<Backend> inner, Widening widening = Widening::computed);

}  // namespace ringlet
