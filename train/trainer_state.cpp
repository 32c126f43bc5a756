// Trainer: saving and loading.
#include "train/trainer.h"

namespace ringlet {
namespace {

constexpr const char* kUpdates = "updates";
constexpr const char* kSkipped = "skipped_steps";
constexpr const char* kSkippedInRow = "skipped_in_row";

}  // namespace

void Trainer::load(const Checkpoint& checkpoint) {
  const CheckpointInfo& info = checkpoint.info();
  check_fits(info, parameter_shapes(run_.gpt));
  load_weights(checkpoint, parameters_);
  Backend& device = rank_.context.device;
  std::vector<float> values, second;
  for (const ShardedAdamW::Segment& segment : optimizer_.segments()) {
    values.resize(segment.first_moment.size());
    second.resize(values.size());
    checkpoint.read_moments(segment.parameter->name, segment.first_element, values, second);
    upload<float>(device, values, segment.first_moment);
    upload<float>(device, second, segment.second_moment);
  }
  const auto counter = [&](const char* name) {
    const auto found = info.counters.find(name);
    CHECK(found != info.counters.end(), "checkpoint has no counter ", name);
    return found->second;
  };
  step_ = saved_step_ = info.step;
  cursor_ = info.step > place_.first_step ? info.cursor : 0;  // of the stage that has ended
  tokens_ = info.tokens;
  updates_ = counter(kUpdates);
  skipped_ = counter(kSkipped);
  skipped_in_row_ = counter(kSkippedInRow);
}

Tensor Trainer::full_weights(const Bucket& bucket) {
  if (bucket.weights.dtype == Dtype::f32) return bucket.weights;
  // Between two steps nobody needs the gradients: saving takes no more memory than training.
  Backend& device = rank_.context.device;
  device.wait(rank_.world.all_gather(bucket.master, bucket.gradients, device.record()));
  return bucket.gradients;
}

void Trainer::save() {
  if (run_.folder == nullptr || saved_step_ == step_) return;
  rank_.context.trace.enter_phase("checkpoint");
  Backend& device = rank_.context.device;
  CheckpointInfo info;
  info.step = step_;
  info.tokens = tokens_;
  info.seed = uint64_t(run_config().run.seed);
  info.cursor = cursor_;
  info.counters = {{kUpdates, updates_}, {kSkipped, skipped_}, {kSkippedInRow, skipped_in_row_}};
  info.config_toml = to_toml(run_config());
  info.corpus_fingerprint = run_.corpus_fingerprint;
  info.tokenizer_name = run_.tokenizer_name;
  info.tokenizer_hash = run_.tokenizer_hash;
  info.world = rank_.world.size();
  info.ring = rank_.context.ring.size();
  info.layout = name_of(config_.run.layout);
  info.parameters = parameter_shapes(run_.gpt);

  std::vector<std::vector<float>> storage;  // moves of the outer vector leave the values in place
  // The masters of bf16 buckets meet in gradient buffers that the next bucket may share: copied to the host.
  const auto saved = [&](const Tensor& values, Dtype of) -> SavedValues {
    if (of == Dtype::f32) return {device, values};
    storage.emplace_back(values.size());
    read<float>(device, values, storage.back());
    return storage.back();
  };
  std::vector<NamedWeights> weights;
  for (int64_t i = 0; i < std::ssize(parameters_.buckets()); ++i) {
    const Tensor all = full_weights(parameters_.buckets()[i]);
    for (const Parameter& parameter : parameters_.all()) {
      if (!leads() || parameter.bucket != i) continue;
      weights.push_back({parameter.name, saved(all.slice(parameter.first_element, parameter.weight.size()),
                                               parameter.weight.dtype)});
    }
  }
  std::vector<Shard> shards;
  for (const ShardedAdamW::Segment& segment : optimizer_.segments()) {
    shards.push_back({segment.parameter->name, segment.first_element, {device, segment.first_moment},
                      {device, segment.second_moment}});
  }
  save_checkpoint(run_.folder->checkpoints(), info, weights, shards,
                  {.keep_last = int(config_.checkpoint.keep)}, {rank_.world, rank_.context.trace});
  saved_step_ = step_;
  say("saved checkpoint of step " + std::to_string(step_));
}

}  // namespace ringlet
