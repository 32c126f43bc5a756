#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

namespace ringlet {

/// A mean over `count` tokens and how sure it is: the deviation of the tokens / sqrt(count). NaN
/// where the count is too small to tell.
struct MeanLoss {
  int64_t count = 0;
  double mean = 0, standard_error = 0;
};

/// How much lower the loss is late in the window than early: below zero, the context helps.
/// Source: arXiv:2209.11895, which takes the single tokens 50 and 500.
struct InContextScore {
  MeanLoss around_50, around_500;  // positions 45 to 54, 475 to 524 of the window
  double score() const { return around_500.mean - around_50.mean; }
  /// Of the score, the tokens taken as independent.
  double standard_error() const;
};

/// Losses of a window's tokens in bins that double, 0, 1, 2-3, 4-7, ..., the last one ending with
/// the window: once by position in the window, once by distance into the document. Sums are kept in
/// double. Ranks merge by adding their flat vectors.
class PositionBins {
 public:
  /// length: positions of the window, >= 1.
  explicit PositionBins(int64_t length);

  /// The loss at `position` is that of the token behind it. distance: position - start of its
  /// document; a document that began before the window counts from the window's start, because that
  /// is the context that the model has. 0 <= distance <= position < length. A loss that is not
  /// finite makes its means so.
  void add(int64_t position, int64_t distance, double loss);

  struct Bin {
    int64_t first, last;
    MeanLoss loss;
  };
  std::vector<Bin> by_position() const { return bins(0); }
  std::vector<Bin> by_distance() const { return bins(bin_count_); }
  /// Are the two lists different? Never where each window held one document.
  bool distance_differs() const;

  MeanLoss all() const { return loss_of(range_group(kAll)); }
  int64_t count() const { return all().count; }
  double mean() const { return all().mean; }
  double standard_error() const { return all().standard_error; }
  double first_quarter() const;  // mean over the positions below length / 4, at least one
  double last_quarter() const;   // mean over as many positions at the end
  /// Absent where the window ends before position 524, or no tokens came from there.
  std::optional<InContextScore> in_context_score() const;

  /// Count, sum and sum of squares of each group: what ranks add up. The size depends on the length
  /// alone.
  std::vector<double> to_flat() const { return sums_; }
  static PositionBins from_flat(int64_t length, std::span<const double> flat);

 private:
  enum RangeName : int64_t { kFirstQuarter, kLastQuarter, kAround50, kAround500, kAll, kRanges };
  struct Range {
    int64_t first, last;
  };
  int64_t range_group(int64_t range) const { return 2 * bin_count_ + range; }
  void add_to(int64_t group, double loss);
  MeanLoss loss_of(int64_t group) const;
  std::vector<Bin> bins(int64_t first_group) const;

  int64_t length_, bin_count_;
  std::array<Range, kRanges> ranges_;  // of positions
  std::vector<double> sums_;           // bins by position, bins by distance, ranges
};

}  // namespace ringlet
