#pragma once

#include <cstdint>
#include <vector>

#include "train/position_bins.h"

namespace ringlet::test {

/// One token with a label, wherever it was scored.
struct ScoredToken {
  int64_t position = 0, distance = 0;  // in the window, into the document
  double loss = 0;
};

struct BinTolerance {
  double mean = 1e-12, standard_error = 1e-10;  // sums of squares cancel
};

/// Mean and standard error of all losses, in two passes.
MeanLoss plain_mean(const std::vector<double>& losses);
/// Of the tokens at positions first to last.
MeanLoss plain_mean(const std::vector<ScoredToken>& tokens, int64_t first, int64_t last);

/// Expects every bin, quarter and score to be that of the tokens, taken one by one.
void expect_bins_of(const std::vector<ScoredToken>& tokens, int64_t length,
                    const PositionBins& actual, BinTolerance tolerance = {});

/// Expects a list of bins that double, with the tokens whose `index` is in each.
void expect_list_of(const std::vector<ScoredToken>& tokens, int64_t ScoredToken::*index,
                    int64_t length, const std::vector<PositionBins::Bin>& actual,
                    BinTolerance tolerance = {});

}  // namespace ringlet::test
