#include "train/verify/deviation.h"

#include <algorithm>
#include <cmath>

#include "kernels/check.h"

namespace ringlet {

double norm_of(std::span<const double> values) {
  double squares = 0;
  for (const double value : values) squares += value * value;
  return std::sqrt(squares);
}

double distance(std::span<const double> a, std::span<const double> b) {
  CHECK(a.size() == b.size(), a.size(), " values against ", b.size());
  double squares = 0;
  for (size_t i = 0; i < a.size(); ++i) squares += (a[i] - b[i]) * (a[i] - b[i]);
  return std::sqrt(squares);
}

bool worse(const Deviation& a, const Deviation& b) {
  if (std::isnan(b.error)) return false;
  return !(a.share() <= b.share());
}

double typical_norm(std::span<const double> rows, int64_t width) {
  return rows.empty() ? 0 : norm_of(rows) / std::sqrt(double(rows.size()) / double(width));
}

RowError worst_row(std::span<const double> actual, std::span<const double> expected, int64_t width,
                   double floor) {
  CHECK(actual.size() == expected.size() && width > 0 && expected.size() % size_t(width) == 0,
        actual.size(), " values against ", expected.size(), " in rows of ", width);
  const int64_t rows = int64_t(expected.size()) / width;
  const double typical = typical_norm(expected, width);
  RowError worst;
  for (int64_t row = 0; row < rows; ++row) {
    const auto a = actual.subspan(size_t(row * width), size_t(width));
    const auto e = expected.subspan(size_t(row * width), size_t(width));
    const double scale = std::max({norm_of(e), typical, floor, 1e-30});
    const double error = distance(a, e) / scale;
    if (worst.row >= 0 && (std::isnan(worst.error) || error <= worst.error)) continue;
    worst = {row, 0, error};
    double largest = std::abs(a[0] - e[0]);
    for (int64_t column = 1; column < width && !std::isnan(largest); ++column) {
      const double difference = std::abs(a[size_t(column)] - e[size_t(column)]);
      if (difference <= largest) continue;  // NaN is the largest
      largest = difference;
      worst.column = column;
    }
  }
  return worst;
}

}  // namespace ringlet
