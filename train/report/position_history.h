#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "train/report/heat_map.h"

namespace ringlet {

/// Loss by position, step after step.
class PositionHistory {
 public:
  struct Bin {
    double first, last;  // positions in the window, from 0
    double count, mean;
  };
  /// The bins of a step; steps ascend.
  void add(int64_t step, std::vector<Bin> bins);
  bool empty() const { return steps_.empty(); }

  /// Columns: bins of the position. Rows: at most `rows` groups of neighbouring steps, of even
  /// size; a bin's mean by count. Of fewer than `least_tokens` tokens there is none: it would be
  /// noise.
  HeatMap loss_map(size_t rows, double least_tokens) const;
  /// The same with d loss / d ln(position), between the middles of neighbouring bins: below 0, more
  /// context helps.
  HeatMap slope_map(size_t rows, double least_tokens) const;

 private:
  struct Step {
    int64_t step;
    std::vector<Bin> bins;
  };
  /// Bins in ascending order, joined over all steps; rows of means.
  struct Grid {
    std::vector<Bin> bins;
    std::vector<std::vector<double>> means;
    std::vector<double> step_edges;
  };
  Grid grid(size_t rows, double least_tokens) const;

  std::vector<Step> steps_;
};

/// The middle of a bin on a logarithmic axis, as a count of tokens: position p has the context p
/// + 1.
double middle_context(double first, double last);

}  // namespace ringlet
