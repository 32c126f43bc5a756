#include "train/sampler.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "kernels/check.h"

namespace ringlet {

void validate(const SamplingSettings& settings) {
  if (!(settings.temperature >= 0) || !std::isfinite(settings.temperature)) {
    throw UsageError("temperature must be 0 or more", "0 takes the most likely token, 1 samples as trained");
  }
  if (settings.top_k < 0) throw UsageError("top-k must be 0 or more", "0 means all tokens");
  if (!(settings.top_p > 0 && settings.top_p <= 1)) {
    throw UsageError("top-p must be in (0, 1]", "1 means all tokens");
  }
}

int32_t sample_token(std::span<const float> logits, const SamplingSettings& settings, double uniform) {
  CHECK(!logits.empty(), "no logits to sample from");
  std::vector<int32_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  std::ranges::stable_sort(order, [&](int32_t a, int32_t b) { return logits[a] > logits[b]; });
  if (settings.temperature == 0) return order.front();

  size_t count = order.size();
  if (settings.top_k > 0) count = std::min(count, size_t(settings.top_k));
  std::vector<double> weight(count);
  for (size_t i = 0; i < count; ++i) {
    weight[i] = std::exp((double(logits[order[i]]) - logits[order[0]]) / settings.temperature);
  }
  double total = std::accumulate(weight.begin(), weight.end(), 0.0);
  double kept = 0;
  for (size_t i = 0; i < count; ++i) {
    kept += weight[i];
    if (kept >= settings.top_p * total) count = i + 1;
  }
  double left = uniform * kept;
  for (size_t i = 0; i < count; ++i) {
    left -= weight[i];
    if (left <= 0) return order[i];
  }
  return order[count - 1];
}

}  // namespace ringlet
