#pragma once

#include <string>
#include <vector>

namespace ringlet {

/// L(c) = (alpha / c)^beta + gamma: how the loss falls with the context c, after which gamma is
/// left. Source: the form and its R^2 as in arXiv:2309.16039 (Llama 2 Long).
struct PowerFit {
  double alpha = 0, beta = 0, gamma = 0;
  double r_squared = 0;  // 1 - squares of the residuals / squares around the mean
  std::string no_fit{};  // why there is none; empty: there is one
  bool fits() const { return no_fit.empty(); }
  double at(double context) const;
  std::string text() const;  // "alpha 25.4, beta 0.45, gamma 1.56, R^2 0.997", or "no fit: why"
};

/// Least squares, each point alike. contexts: distinct, above 0. There is no fit to fewer than
/// kLeastFitPoints points that are numbers, to losses that do not fall, and where beta runs out of
/// kLeastBeta to kMostBeta, gamma below 0 or R^2 below kLeastRSquared.
PowerFit fit_power_law(const std::vector<double>& contexts, const std::vector<double>& losses);

inline constexpr size_t kLeastFitPoints = 6;
inline constexpr double kLeastBeta = 0.01, kMostBeta = 5, kLeastRSquared = 0.9;

}  // namespace ringlet
