#include "train/report/power_fit.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "kernels/check.h"

namespace ringlet {
namespace {

constexpr int kGridPoints = 200;
constexpr int kGoldenSteps = 60;

struct Points {
  std::vector<double> contexts, losses;
  double mean_loss = 0, squares = 0;  // around the mean
};

Points finite_points(const std::vector<double>& contexts, const std::vector<double>& losses) {
  Points points;
  for (size_t i = 0; i < contexts.size(); ++i) {
    if (!std::isfinite(losses[i])) continue;
    points.contexts.push_back(contexts[i]);
    points.losses.push_back(losses[i]);
    points.mean_loss += losses[i];
  }
  points.mean_loss /= double(points.losses.size());
  for (const double loss : points.losses) points.squares += std::pow(loss - points.mean_loss, 2);
  return points;
}

/// The best slope * c^-beta + gamma of one beta: a straight line, so exact.
struct LineFit {
  double slope = 0, gamma = 0, residual_squares = INFINITY;
};

LineFit line_of(const Points& points, double beta) {
  std::vector<double> powers;
  double mean_power = 0, power_squares = 0, products = 0;
  for (const double context : points.contexts) powers.push_back(std::pow(context, -beta));
  for (const double power : powers) mean_power += power / double(powers.size());
  for (size_t i = 0; i < powers.size(); ++i) {
    power_squares += std::pow(powers[i] - mean_power, 2);
    products += (powers[i] - mean_power) * (points.losses[i] - points.mean_loss);
  }
  LineFit line;
  line.slope = products / power_squares;
  line.gamma = points.mean_loss - line.slope * mean_power;
  line.residual_squares = 0;
  for (size_t i = 0; i < powers.size(); ++i) {
    line.residual_squares += std::pow(line.slope * powers[i] + line.gamma - points.losses[i], 2);
  }
  return line;
}

/// The logarithm of the best beta: the best of a grid, then a golden section around it.
double best_log_beta(const Points& points) {
  const double low = std::log(kLeastBeta), high = std::log(kMostBeta),
               step = (high - low) / kGridPoints;
  const auto squares = [&](double log_beta) {
    return line_of(points, std::exp(log_beta)).residual_squares;
  };
  double best = low;
  for (int i = 1; i <= kGridPoints; ++i) {
    if (squares(low + i * step) < squares(best)) best = low + i * step;
  }
  const double golden = (std::sqrt(5.0) - 1) / 2;
  double from = std::max(low, best - step), to = std::min(high, best + step);
  for (int i = 0; i < kGoldenSteps; ++i) {
    const double left = to - golden * (to - from), right = from + golden * (to - from);
    (squares(left) < squares(right) ? to : from) = squares(left) < squares(right) ? right : left;
  }
  return (from + to) / 2;
}

std::string reason_against(const PowerFit& fit, double slope) {
  const double margin = 1e-3;
  if (!(slope > 0)) return "the loss does not fall with the position";
  if (fit.beta < kLeastBeta * (1 + margin))
    return "it falls more slowly than any power, like a logarithm";
  if (fit.beta > kMostBeta * (1 - margin)) return "it falls within the first positions";
  if (fit.gamma < 0) return fmt::format("it would go to {:.2f}, below 0", fit.gamma);
  if (!(fit.r_squared >= kLeastRSquared)) return fmt::format("R^2 {:.2f}", fit.r_squared);
  return "";
}

}  // namespace

double PowerFit::at(double context) const { return std::pow(alpha / context, beta) + gamma; }

std::string PowerFit::text() const {
  if (!fits()) return "no fit: " + no_fit;
  return fmt::format("alpha {:.3g}, beta {:.3f}, gamma {:.3f}, R^2 {:.4f}", alpha, beta, gamma,
                     r_squared);
}

PowerFit fit_power_law(const std::vector<double>& contexts, const std::vector<double>& losses) {
  CHECK(contexts.size() == losses.size(), contexts.size(), " and ", losses.size(),
        " values of a fit");
  const Points points = finite_points(contexts, losses);
  PowerFit fit;
  if (points.losses.size() < kLeastFitPoints) {
    fit.no_fit = fmt::format("{} bins, {} are needed", points.losses.size(), kLeastFitPoints);
    return fit;
  }
  fit.beta = std::exp(best_log_beta(points));
  const LineFit line = line_of(points, fit.beta);
  fit.gamma = line.gamma;
  fit.alpha = std::pow(line.slope, 1 / fit.beta);
  fit.r_squared = points.squares > 0 ? 1 - line.residual_squares / points.squares : 0;
  fit.no_fit = reason_against(fit, line.slope);
  return fit;
}

}  // namespace ringlet
