#pragma once

#include <cstdint>
#include <span>

namespace ringlet {

struct SamplingSettings {
  double temperature = 1;  // 0: always the most likely token
  int64_t top_k = 0;       // only the k most likely; 0: all
  double top_p = 1;        // only the most likely ones that together have this probability
};

/// Throws UsageError that names the value that cannot be.
void validate(const SamplingSettings& settings);

/// A token drawn from softmax(logits / temperature), cut to top_k and then top_p. `uniform` in (0, 1) decides;
/// equal inputs give equal tokens. Among equal logits the smaller id comes first.
int32_t sample_token(std::span<const float> logits, const SamplingSettings& settings, double uniform);

}  // namespace ringlet
