#include "model/gpt.h"

#include "model/block_inputs.h"

namespace ringlet {

KvCache::KvCache(const GptConfig& config, int64_t capacity_tokens, Backend& device) {
  for (int64_t i = 0; i < config.layers; ++i) {
    layers.push_back({device.arena().allocate(
        "KV cache", config.dtype,
        {2 * config.heads.kv_heads, capacity_tokens, config.heads.head_dim, 1})});
    device.fill(0, layers.back().kv);
  }
}

Gpt::Gpt(const Parameters& parameters, double rope_base)
    : config_(parameters.config()),
      embedding_(parameters.find("embedding.weight")),
      head_(parameters) {
  config_.rope_base = rope_base;
  for (int64_t i = 0; i < config().layers; ++i) {
    blocks_.emplace_back(parameters, "blocks." + std::to_string(i));
  }
}

Tensor Gpt::stream(const char* region, Step& step) const {
  return step.arena().allocate(region, config().dtype, {step.rows(), config().width, 1, 1});
}

void Gpt::train(Step& step, float gradient_scale, const BucketReady& bucket_ready) {
  const ArenaScope scope(step.arena());
  const int layers = int(blocks_.size());
  step.trace.enter_phase("forward");
  BlockInputs inputs(step, config());
  Tensor x = inputs.room_for_next();
  step.device.embedding_forward(step.tokens, embedding_.weight, x);
  inputs.written();
  for (int i = 0; i < layers; ++i) {
    step.trace.enter_layer(i);
    const Tensor y = inputs.room_for_next();
    blocks_[i].forward(x, y, step);
    inputs.written();
    x = y;
  }
  step.trace.enter_phase("backward");
  const Tensor gradient = stream("activation gradients", step);
  head_.loss_and_gradient(x, gradient_scale, gradient, step);
  bucket_ready(layers + 1);
  for (int i = layers - 1; i >= 0; --i) {
    step.trace.enter_layer(i);
    const ArenaScope layer_scope(step.arena());
    blocks_[i].restore(inputs.back(i), step);
    blocks_[i].backward(gradient, gradient, step);
    bucket_ready(i + 1);
  }
  step.device.embedding_backward(step.tokens, gradient, embedding_.gradient);
  bucket_ready(0);
}

void Gpt::evaluate(Step& step, const SeeLogits& see) {
  const ArenaScope scope(step.arena());
  step.trace.enter_phase("evaluation");
  Tensor x = stream("activations", step), y = stream("activations", step);
  step.device.embedding_forward(step.tokens, embedding_.weight, x);
  for (int i = 0; i < int(blocks_.size()); ++i) {
    step.trace.enter_layer(i);
    blocks_[i].forward(x, y, step);
    std::swap(x, y);
  }
  head_.loss(x, step, see);
}

void Gpt::extend(RankContext context, const StepSettings& settings, int64_t window,
                 std::span<const int32_t> tokens, KvCache& cache, const Tensor& logits) {
  CHECK(!tokens.empty(), "no tokens to extend with");
  const ArenaScope scope(context.device.arena());
  const int64_t count = int64_t(tokens.size());
  const SequenceLayout layout{count, {{Piece{cache.used_tokens(), 1, 0, count}}}};
  const std::vector<int32_t> no_labels(tokens.size(), -1);
  const Mask mask{{0}, window};
  Step step(context, settings, Pass::evaluation, layout, mask, config().rope_base,
            config().heads.head_dim, tokens, no_labels);
  Tensor x = stream("activations", step), y = stream("activations", step);
  step.device.embedding_forward(step.tokens, embedding_.weight, x);
  for (size_t i = 0; i < blocks_.size(); ++i) {
    blocks_[i].extend(x, y, cache.layers[i], step);
    std::swap(x, y);
  }
  head_.logits(x.slice(count - 1, 1), logits, step);
}

}  // namespace ringlet
