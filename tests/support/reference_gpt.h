#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "model/gpt_config.h"

namespace ringlet::test {

/// Numbers by parameter name (model/gpt_config.h).
using Values = std::map<std::string, std::vector<double>>;

/// One window of T tokens for a whole model.
struct ReferenceInput {
  GptConfig config;
  Values parameters;
  std::vector<int32_t> tokens, labels;  // [T]; label -1: no loss here
  std::vector<int64_t> first_visible;   // [T]; query i sees keys first_visible[i] to i
  double loss_scale = 1;
};

struct ReferenceResult {
  double loss = 0;                         // sum of `losses` * loss_scale
  std::vector<double> losses;              // [T], not scaled
  Values gradients;                        // of `loss`
  std::vector<double> d_embedding_output;  // [T, width]: gradient of the first block's input
  std::vector<std::vector<double>> attention_outputs;  // per layer [T, heads * head_dim]
  std::vector<std::vector<double>> lse;                // per layer [heads, T]
};

/// Forward and backward of the whole model, dense and in double, sharing nothing with model/ but
/// its shapes: the definition of what every other implementation computes. Memory: layers * heads *
/// T^2.
ReferenceResult reference_gpt(const ReferenceInput& input);

/// The loss alone.
double reference_loss(const ReferenceInput& input);

/// Parameters of a model that is not fresh: its losses differ well from log(vocabulary), its
/// attention is not flat, its norms are not 1. A pure function of the seed.
std::map<std::string, std::vector<float>> random_parameters(const GptConfig& config, uint64_t seed);

Values widened(const std::map<std::string, std::vector<float>>& parameters);

/// Weights and moments on their way through training.
struct ReferenceOptimizer {
  Values weights, first_moment, second_moment;  // absent moments are zero
};

/// One AdamW step in double. The gradient is scaled by min(1, clip / norm) (settings.gradient_scale
/// is not used); weights decay only where the parameter is a matrix. Returns the norm before
/// clipping.
double reference_adamw(const GptConfig& config, const AdamW& settings, double clip,
                       const Values& gradients, ReferenceOptimizer& optimizer);

}  // namespace ringlet::test
