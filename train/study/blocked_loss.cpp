#include "train/study/blocked_loss.h"

#include <cmath>
#include <numeric>

#include "kernels/check.h"

namespace ringlet {
namespace {

double sum_of(const std::vector<double>& values) {
  return std::accumulate(values.begin(), values.end(), 0.0);
}

/// What block i adds to the deviation of the mean.
double residual(const BlockedLoss& model, double mean, double tokens, size_t i) {
  return (model.losses[i] - mean * model.tokens[i]) / tokens;
}

double error_of(double squares, int64_t blocks) {
  return blocks < 2 ? NAN : std::sqrt(squares * double(blocks) / double(blocks - 1));
}

}  // namespace

double BlockedLoss::token_count() const { return sum_of(tokens); }

double BlockedLoss::mean() const { return sum_of(losses) / sum_of(tokens); }

double BlockedLoss::standard_error() const {
  const double mean_loss = mean(), count = token_count();
  double squares = 0;
  int64_t blocks = 0;
  for (size_t i = 0; i < tokens.size(); ++i) {
    blocks += tokens[i] > 0;
    squares += std::pow(residual(*this, mean_loss, count, i), 2);
  }
  return error_of(squares, blocks);
}

LossDifference difference(const BlockedLoss& a, const BlockedLoss& b) {
  CHECK(a.tokens.size() == b.tokens.size(), a.tokens.size(), " and ", b.tokens.size(), " blocks");
  const double mean_a = a.mean(), mean_b = b.mean(), count_a = a.token_count(),
               count_b = b.token_count();
  double squares = 0;
  int64_t blocks = 0;
  for (size_t i = 0; i < a.tokens.size(); ++i) {
    blocks += a.tokens[i] > 0 && b.tokens[i] > 0;
    squares += std::pow(residual(a, mean_a, count_a, i) - residual(b, mean_b, count_b, i), 2);
  }
  return {mean_a - mean_b, error_of(squares, blocks)};
}

BlockedLoss mean_of(std::span<const BlockedLoss> models) {
  CHECK(!models.empty(), "no model");
  BlockedLoss mean(models[0].tokens.size());
  mean.tokens = models[0].tokens;
  for (const BlockedLoss& model : models) {
    CHECK(model.tokens == mean.tokens, "models that were scored on other tokens");
    for (size_t i = 0; i < mean.losses.size(); ++i)
      mean.losses[i] += model.losses[i] / double(models.size());
  }
  return mean;
}

}  // namespace ringlet
