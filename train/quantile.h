#pragma once

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

namespace ringlet {

/// The value below which a share of all lies, 0 to 1; between two values on the line through them. NaN of none.
inline double quantile(std::vector<double> values, double share) {
  if (values.empty()) return NAN;
  std::ranges::sort(values);
  const double place = share * double(values.size() - 1);
  const auto below = size_t(place);
  const size_t above = std::min(below + 1, values.size() - 1);
  return values[below] + (place - double(below)) * (values[above] - values[below]);
}

inline double median(std::vector<double> values) { return quantile(std::move(values), 0.5); }

/// NaN of none.
inline double mean(const std::vector<double>& values) {
  return values.empty() ? NAN : std::accumulate(values.begin(), values.end(), 0.0) / double(values.size());
}

}  // namespace ringlet
