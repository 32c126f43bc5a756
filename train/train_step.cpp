#include "train/train_step.h"

#include <algorithm>
#include <utility>

namespace ringlet {

TrainStep::TrainStep(const ModelRank& rank, Parameters& parameters, ShardedAdamW& optimizer,
                     MaskRule mask, int64_t sliding_window, StepRules rules)
    : rank_(rank),
      parameters_(parameters),
      optimizer_(optimizer),
      mask_(mask),
      sliding_window_(sliding_window),
      rules_(std::move(rules)) {}

double TrainStep::accumulate(const StepWindows& windows, Backend& device, const Losses& losses) {
  optimizer_.zero_gradients();
  const RankContext context{device, rank_.context.ring, rank_.context.trace, rank_.context.offload, &memory_};
  const GptConfig& gpt = rank_.gpt.config();
  const auto scale = float(rules_.loss_scale(windows.scored_tokens));
  // Sums are collective: who has no window, or none left, adds nothing to them.
  const int64_t rounds = optimizer_.reduces_every_window() ? windows.most : std::max<int64_t>(windows.count, 1);
  for (int64_t i = 0; i < rounds; ++i) {
    const bool reduce = optimizer_.reduces_every_window() || i + 1 == rounds;
    optimizer_.begin_window();
    if (i >= windows.count) {
      for (int64_t bucket = std::ssize(parameters_.buckets()) - 1; bucket >= 0; --bucket) {
        optimizer_.start_reduce(bucket);
      }
      continue;
    }
    const ArenaScope scope(device.arena());
    context.trace.enter_phase("data");
    const Batch& batch = *windows.next();
    set_mask(batch.window, mask_, sliding_window_, window_mask_);
    Step step(context, rank_.settings, Pass::training, rank_.layout, window_mask_, gpt.rope_base,
              gpt.heads.head_dim, batch.tokens, batch.labels);
    rank_.gpt.train(step, scale, [&](int64_t bucket) {
      if (reduce) optimizer_.start_reduce(bucket);
    });
    losses_.resize(size_t(step.rows()));
    read<float>(device, step.losses, losses_);
    losses(losses_, batch);
  }
  return optimizer_.finish_reduce();
}

void TrainStep::update(double gradient_squares, double clip_norm, AdamW settings) {
  settings.gradient_scale = float(rules_.clip_factor(gradient_squares, clip_norm));
  optimizer_.update(settings);
}

}  // namespace ringlet
