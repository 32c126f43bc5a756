#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "model/gpt_config.h"

namespace ringlet {

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

/// One attention layer, position by position. q and k are meant as the scores see them: normed and rotated.
struct LayerValues {
  std::vector<double> output;  // [T, heads * head_dim]
  std::vector<double> lse;     // [T, heads]
  std::vector<double> dq;      // [T, heads * head_dim]
  std::vector<double> dk, dv;  // [T, kv_heads * head_dim]
};

struct ReferenceResult {
  double loss = 0;                         // sum of `losses` * loss_scale
  std::vector<double> losses;              // [T], not scaled
  Values gradients;                        // of `loss`
  std::vector<double> d_embedding_output;  // [T, width]: gradient of the first block's input
  std::vector<LayerValues> layers;
};

/// Forward and backward of the whole model, dense and in double, sharing nothing with model/ but
/// its shapes: the definition of what every other implementation computes. Memory: layers * heads *
/// T^2.
ReferenceResult reference_gpt(const ReferenceInput& input);

/// The loss alone.
double reference_loss(const ReferenceInput& input);

/// Weights and moments on their way through training.
struct ReferenceOptimizer {
  Values weights, first_moment, second_moment;  // absent moments are zero
};

/// One AdamW step in double. The gradient is scaled by min(1, clip / norm) (settings.gradient_scale
/// is not used); weights decay only where the parameter is a matrix. Returns the norm before
/// clipping.
double reference_adamw(const GptConfig& config, const AdamW& settings, double clip,
                       const Values& gradients, ReferenceOptimizer& optimizer);

}  // namespace ringlet
