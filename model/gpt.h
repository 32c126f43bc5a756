#pragma once

#include <functional>
#include <vector>

#include "model/block.h"
#include "model/loss_head.h"
#include "model/parameters.h"

namespace ringlet {

/// Keys and values of a text under way, for every layer, in the arena (region "KV cache").
struct KvCache {
  KvCache(const GptConfig& config, int64_t capacity_tokens, Backend& device);
  int64_t used_tokens() const { return layers.empty() ? 0 : layers.front().used_rows; }
  std::vector<LayerCache> layers;
};

/// The whole model: embedding, blocks, loss head. Start reading the model here.
class Gpt {
 public:
  /// `parameters` must outlive the model.
  explicit Gpt(const Parameters& parameters) : Gpt(parameters, parameters.config().rope_base) {}
  /// The same weights with rotary positions of another base.
  Gpt(const Parameters& parameters, double rope_base);

  /// Called when the gradients of a bucket (Parameters::buckets()) are complete: its sum over the ranks may start.
  using BucketReady = std::function<void(int64_t bucket)>;

  /// Forward and backward over one window. step.losses gets the loss of each row; the gradient of
  /// gradient_scale * (their sum) is added to the parameters' gradients.
  void train(Step& step, float gradient_scale, const BucketReady& bucket_ready);

  /// Forward only: step.losses gets the loss of each row. `see`: as in LossHead::loss.
  void evaluate(Step& step, const SeeLogits& see = {});

  /// Runs the tokens that follow those in the cache (positions used_tokens() ...), alone on a ring of one.
  /// window: as in Mask. logits: [1, vocabulary] of the last token.
  void extend(RankContext context, const StepSettings& settings, int64_t window,
              std::span<const int32_t> tokens, KvCache& cache, const Tensor& logits);

  const GptConfig& config() const { return config_; }

 private:
  Tensor stream(const char* region, Step& step) const;

  GptConfig config_;
  const Parameter& embedding_;
  std::vector<Block> blocks_;
  LossHead head_;
};

}  // namespace ringlet
