#include "train/scale/fit.h"

#include <algorithm>
#include <cmath>
#include <set>

#include "kernels/check.h"

namespace ringlet {
namespace {

/// Solves the least squares of rows * result = 1 by Householder reflections. rows: at least as many as columns.
std::vector<double> least_squares(std::vector<std::vector<double>> rows, size_t columns) {
  std::vector<double> target(rows.size(), 1);
  for (size_t k = 0; k < columns; ++k) {
    double norm = 0;
    for (size_t i = k; i < rows.size(); ++i) norm = std::hypot(norm, rows[i][k]);
    const double head = rows[k][k] > 0 ? -norm : norm;
    std::vector<double> v(rows.size(), 0);
    double squares = 0;
    for (size_t i = k; i < rows.size(); ++i) {
      v[i] = rows[i][k] - (i == k ? head : 0);
      squares += v[i] * v[i];
    }
    CHECK(squares > 0, "points of a fit lie on each other");
    const auto reflect = [&](auto&& value) {
      double dot = 0;
      for (size_t i = k; i < rows.size(); ++i) dot += v[i] * value(i);
      for (size_t i = k; i < rows.size(); ++i) value(i) -= 2 * dot / squares * v[i];
    };
    for (size_t j = k; j < columns; ++j) reflect([&](size_t i) -> double& { return rows[i][j]; });
    reflect([&](size_t i) -> double& { return target[i]; });
  }
  std::vector<double> result(columns);
  for (size_t k = columns; k-- > 0;) {
    double rest = target[k];
    for (size_t j = k + 1; j < columns; ++j) rest -= rows[k][j] * result[j];
    result[k] = rest / rows[k][k];
  }
  return result;
}

}  // namespace

double PolynomialFit::at(double x) const {
  double value = 0;
  for (size_t k = coefficients.size(); k-- > 0;) value = value * x + coefficients[k];
  return value;
}

double PolynomialFit::largest_residual() const {
  double largest = 0;
  for (const double residual : residuals) largest = std::max(largest, std::abs(residual));
  return largest;
}

std::string PolynomialFit::not_positive() const {
  std::string names;
  for (size_t k = 0; k < coefficients.size(); ++k) {
    if (coefficients[k] > 0) continue;
    names += (names.empty() ? "" : ", ") + std::string(1, char('a' + k));
  }
  return names;
}

PolynomialFit fit_polynomial(const std::vector<double>& x, const std::vector<double>& y, int coefficients) {
  CHECK(x.size() == y.size() && coefficients > 0, x.size(), " and ", y.size(), " values of a fit");
  PolynomialFit fit;
  if (std::set(x.begin(), x.end()).size() < size_t(coefficients)) return fit;
  // Powers of x over its largest value: of like size, so that little is lost to rounding.
  const double unit = *std::ranges::max_element(x);
  std::vector<std::vector<double>> rows;
  for (size_t i = 0; i < x.size(); ++i) {
    rows.emplace_back();
    for (int k = 0; k < coefficients; ++k) rows.back().push_back(std::pow(x[i] / unit, k) / y[i]);
  }
  fit.coefficients = least_squares(std::move(rows), size_t(coefficients));
  for (int k = 0; k < coefficients; ++k) fit.coefficients[size_t(k)] /= std::pow(unit, k);
  for (size_t i = 0; i < x.size(); ++i) fit.residuals.push_back(fit.at(x[i]) / y[i] - 1);
  return fit;
}

}  // namespace ringlet
