#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace ringlet {

/// Losses of one model summed over blocks of consecutive tokens of a text. Models are compared
/// block by block: what makes a block hard is hard for all of them, and goes out of their
/// difference.
struct BlockedLoss {
  std::vector<double> tokens,
      losses;  // of each block: how many were scored, and the sum of their losses

  BlockedLoss() = default;
  explicit BlockedLoss(size_t blocks) : tokens(blocks), losses(blocks) {}
  double token_count() const;
  double mean() const;  // NaN of no tokens
  /// Of the mean, blocks taken as independent: neighbouring tokens are not. NaN of fewer than two
  /// blocks with tokens.
  double standard_error() const;
};

struct LossDifference {
  double value = 0, standard_error = 0;
};

/// a.mean() - b.mean() over the same blocks, which may score other tokens in them. The error is
/// that of a difference of ratios, from the residuals of each block, so that what both have in
/// common does not count. Throws Error unless both have as many blocks.
LossDifference difference(const BlockedLoss& a, const BlockedLoss& b);

/// The mean model of several that were scored on the same tokens.
BlockedLoss mean_of(std::span<const BlockedLoss> models);

}  // namespace ringlet
