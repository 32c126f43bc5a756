#pragma once

#include <optional>
#include <string>
#include <vector>

#include "train/config.h"
#include "train/verify/verify.h"

namespace ringlet {

/// The part of a matrix that a config admits: its model, scaled down, and its masks; its ring among the worlds.
void restrict_to(const Config& config, VerifyMatrix& matrix);

/// The config's own layout, ring, policy and masks on its scaled-down model: what training verifies before its first
/// step, in about a second.
VerifyMatrix start_matrix(const Config& config);

/// Runs start_matrix. Throws Error that names the first case that failed. Returns a line for the user with the worst
/// error and the cost.
std::string verify_start(const Config& config, const RingParts& parts);

/// The config's own model at its own length: random weights and text, one step.
struct OwnSizeCheck {
  double estimated_seconds = 0;      // of a comparison with one rank
  std::optional<VerifyCase> result;  // against one rank or by samples; absent: would take too long
};

/// seconds_budget: what may be spent, as estimated from the FLOPs of a step at a cautious rate.
OwnSizeCheck verify_own_size(const Config& config, int64_t vocabulary, const RingParts& parts,
                             double seconds_budget);

}  // namespace ringlet
