#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace ringlet {

/// A mean over `count` tokens and how sure it is: the deviation of the tokens / sqrt(count). NaN
/// where the count is too small to tell.
struct MeanLoss {
  int64_t count = 0;
  double mean = 0, standard_error = 0;
};

/// Losses gathered by their global position in the window: bins of positions 0, 1, 2-3, 4-7, ...
/// (the last one ends with the window), the first and the last quarter, and everything. Sums are
/// kept in double. Ranks merge by adding their flat vectors.
class PositionBins {
 public:
  /// length: positions of the window, >= 1.
  explicit PositionBins(int64_t length);

  /// 0 <= position < length. A loss that is not finite makes its means so.
  void add(int64_t position, double loss);

  struct Bin {
    int64_t first_position, last_position;
    MeanLoss loss;
  };
  std::vector<Bin> bins() const;
  MeanLoss all() const;

  int64_t count() const { return all().count; }
  double mean() const { return all().mean; }
  double standard_error() const { return all().standard_error; }
  double first_quarter() const;  // mean over the positions below length / 4, at least one
  double last_quarter() const;   // mean over as many positions at the end

  /// Count, sum and sum of squares of each bin, of both quarters, of all: what ranks add up. The
  /// size depends on the length alone.
  std::vector<double> to_flat() const { return sums_; }
  static PositionBins from_flat(int64_t length, std::span<const double> flat);

 private:
  void add_to(int64_t group, double loss);
  MeanLoss loss_of(int64_t group) const;

  int64_t length_, bin_count_, quarter_;
  std::vector<double> sums_;
};

}  // namespace ringlet
