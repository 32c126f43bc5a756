#pragma once

#include <cstddef>
#include <vector>

namespace ringlet::test {

inline double dot(const std::vector<double>& a, const std::vector<double>& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

/// Central differences of a scalar function of a vector, in double: (f(x + h) - f(x - h)) / 2h per
/// element. Of functions that are smooth at the scale of h and near 1, good to about 1e-9.
template <class Objective>
std::vector<double> central_differences(const Objective& objective, std::vector<double> x,
                                        double step = 1e-5) {
  std::vector<double> gradient(x.size());
  for (size_t i = 0; i < x.size(); ++i) {
    const double middle = x[i];
    x[i] = middle + step;
    const double above = objective(x);
    x[i] = middle - step;
    gradient[i] = (above - objective(x)) / (2 * step);
    x[i] = middle;
  }
  return gradient;
}

/// Largest relative L2 error between a gradient worked out in double and central differences.
inline constexpr double kDifferenceTolerance = 1e-7;

}  // namespace ringlet::test
