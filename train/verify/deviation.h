#pragma once

#include <cstdint>
#include <span>
#include <string>

namespace ringlet {

/// How far one quantity is from what it should be, at its worst place.
struct Deviation {
  std::string quantity;  // "attention output", "gradient", ...
  std::string where;     // "layer 1, head 0, position 37 (rank 2)"
  double error = 0, tolerance = 0;

  bool passed() const { return error <= tolerance; }  // NaN fails
  double share() const { return error / tolerance; }  // of what is allowed
};

/// The larger is worse; NaN is the worst.
bool worse(const Deviation& a, const Deviation& b);

/// Worst row of [rows, width] against what it should be: |difference| over the largest of the row's own norm, the
/// typical (root mean square) norm of all rows, and `floor`. `row` is -1 where there are none.
struct RowError {
  int64_t row = -1, column = 0;  // of the largest difference in the row
  double error = 0;
};
RowError worst_row(std::span<const double> actual, std::span<const double> expected, int64_t width,
                   double floor = 0);
/// In L2.
double norm_of(std::span<const double> values);
double distance(std::span<const double> a, std::span<const double> b);
/// The root mean square norm of the rows.
double typical_norm(std::span<const double> rows, int64_t width);

}  // namespace ringlet
