#pragma once

#include <optional>
#include <string>
#include <vector>

#include "train/config.h"
#include "train/verify/verify.h"

namespace ringlet {

/// The part of a matrix that a config admits: its model, scaled down, and its masks; its world among the worlds, cut to
/// 16 ranks (two rings of 8 for several; more ranks are the same code).
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
  double estimated_bytes = 0;        // of the weights in all their copies
  std::optional<VerifyCase> result;  // against one rank or by samples; absent: would take too much
};

/// What may be spent: seconds as estimated from the FLOPs of a step at a cautious rate.
struct OwnSizeBudget {
  double seconds, bytes;
};
OwnSizeCheck verify_own_size(const Config& config, int64_t vocabulary, const RingParts& parts,
                             OwnSizeBudget budget);

}  // namespace ringlet
