#pragma once

#include <memory>

#include "kernels/backend.h"

namespace ringlet {

struct DryCounts {
  double matmul_flops = 0;
  /// 4 (forward) or 10 (backward) * heads * head_dim for each pair that the causal rule lets
  /// through, exact. A document or window mask is in first_visible, whose values a dry run does not
  /// have: it is not deducted.
  double attention_flops = 0;
};

/// A Backend that computes nothing: it checks shapes, counts FLOPs and lets its Arena count bytes.
/// Its memory is never touched; reads give zeros. `counts` is added to and must outlive the
/// backend.
std::unique_ptr<Backend> make_dry_backend(int64_t arena_bytes, DryCounts& counts);

}  // namespace ringlet
