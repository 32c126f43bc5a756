#pragma once

#include "kernels/tensor.h"

namespace ringlet {

/// How many pairs of a query and a key have position(key) <= position(query). Exact, O(log rows).
int64_t causal_pairs(const Piece& queries, const Piece& keys);

}  // namespace ringlet
