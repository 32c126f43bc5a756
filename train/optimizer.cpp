#include "train/optimizer.h"

#include <algorithm>

namespace ringlet {

ShardedAdamW::ShardedAdamW(const Parameters& parameters, Comm& world)
    : parameters_(parameters), world_(world), reduced_(parameters.buckets().size()) {
  Backend& device = parameters.device();
  const auto allocate = [&](int64_t elements) {
    const Tensor moment = device.arena().allocate("optimizer", Dtype::f32, {elements, 1, 1, 1});
    device.fill(0, moment);
    return moment;
  };
  std::vector<Tensor> first, second;
  for (const Bucket& bucket : parameters.buckets()) {
    first.push_back(allocate(bucket.shard_elements));
    second.push_back(allocate(bucket.shard_elements));
  }
  sum_ = device.arena().allocate("optimizer", Dtype::f64, {1, 1, 1, 1});
  for (const Parameter& parameter : parameters.all()) {
    const Bucket& bucket = parameters.buckets()[parameter.bucket];
    const int64_t shard_begin = bucket.shard_elements * world.rank();
    const int64_t begin = std::max(shard_begin, parameter.first_element);
    const int64_t end = std::min(shard_begin + bucket.shard_elements,
                                 parameter.first_element + parameter.weight.size());
    if (begin >= end) continue;
    const auto part = [&](const Tensor& shard) { return shard.slice(begin - shard_begin, end - begin); };
    segments_.push_back({&parameter, begin - parameter.first_element,
                         part(shard_of(bucket.gradients, bucket)),
                         part(shard_of(bucket.weights, bucket)), part(first[parameter.bucket]),
                         part(second[parameter.bucket])});
  }
}

Tensor ShardedAdamW::shard_of(const Tensor& flat, const Bucket& bucket) const {
  return flat.slice(world_.rank() * bucket.shard_elements, bucket.shard_elements);
}

void ShardedAdamW::start_reduce(int64_t index) {
  const Bucket& bucket = parameters_.buckets()[index];
  Backend& device = parameters_.device();
  reduced_[index] = world_.reduce_scatter(bucket.gradients, shard_of(bucket.gradients, bucket),
                                          device.record());
  device.arena().hold(bucket.gradients, reduced_[index]);
}

double ShardedAdamW::finish_reduce() {
  Backend& device = parameters_.device();
  double total = 0;
  for (size_t i = 0; i < reduced_.size(); ++i) {
    device.wait(reduced_[i]);
    const Bucket& bucket = parameters_.buckets()[i];
    device.sum_of_squares(shard_of(bucket.gradients, bucket), sum_);
    double sum = 0;
    read<double>(device, sum_, {&sum, 1});
    total += sum;
  }
  return total;
}

void ShardedAdamW::update(const AdamW& settings) {
  Backend& device = parameters_.device();
  AdamW without_decay = settings;
  without_decay.weight_decay = 0;
  for (const Segment& segment : segments_) {
    device.adamw(segment.parameter->decays() ? settings : without_decay, segment.gradient,
                 segment.weights, segment.first_moment, segment.second_moment);
  }
  std::vector<Event> gathered;
  for (const Bucket& bucket : parameters_.buckets()) {
    gathered.push_back(
        world_.all_gather(shard_of(bucket.weights, bucket), bucket.weights, device.record()));
    device.arena().hold(bucket.weights, gathered.back());
  }
  for (const Event& event : gathered) device.wait(event);
}

}  // namespace ringlet
