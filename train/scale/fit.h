#pragma once

#include <string>
#include <vector>

namespace ringlet {

/// y = sum of coefficients[k] * x^k, fitted so that the sum of squares of (fit - y) / y is least: each point counts by its
/// relative error.
struct PolynomialFit {
  std::vector<double> coefficients;  // a, b, c, ...; empty: fewer points than coefficients
  std::vector<double> residuals;     // (fit - y) / y at each point

  double at(double x) const;
  double largest_residual() const;  // its size
  /// "b", "b, c": the names of coefficients that are not above 0, which no time and no memory has; empty: none.
  std::string not_positive() const;
};

/// As many points as coefficients are passed through exactly. x: distinct, above 0; y: above 0.
PolynomialFit fit_polynomial(const std::vector<double>& x, const std::vector<double>& y, int coefficients);

}  // namespace ringlet
