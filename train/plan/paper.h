#pragma once

#include <string>

#include "model/gpt_config.h"
#include "model/step.h"

namespace ringlet {

/// The tables of the ring attention paper (arXiv:2310.01889): table 2, the least block c and sequence 6 c of a device for
/// which a hop hides (4 d c^2 / F >= 4 c d / B), beside the figures that it prints, and the same derived for what a causal
/// trainer does: zigzag, grouped heads, backward, f32. Table 1, bytes of activations of a layer, by its formulas.
std::string paper_text();

/// Bytes that a layer keeps for each token of a rank from forward to backward, f32: the formula.
int64_t kept_bytes_per_token(const GptConfig& gpt, Recompute policy);

}  // namespace ringlet
