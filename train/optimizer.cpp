#include "train/optimizer.h"

#include <numeric>

namespace ringlet {

ShardedAdamW::ShardedAdamW(const Parameters& parameters, Comm& world)
    : parameters_(parameters),
      world_(world),
      under_way_(parameters.buckets().size(), kNone),
      reduced_(parameters.buckets().size()),
      gathered_(parameters.buckets().size()),
      host_sums_(parameters.buckets().size()) {
  Backend& device = parameters.device();
  const auto allocate = [&](const char* region, int64_t elements) {
    const Tensor flat = device.arena().allocate(region, Dtype::f32, {elements, 1, 1, 1});
    device.fill(0, flat);
    return flat;
  };
  const bool rounds = parameters.config().dtype != Dtype::f32;
  std::vector<Tensor> first, second;
  for (const Bucket& bucket : parameters.buckets()) {
    first.push_back(allocate("optimizer", bucket.shard_elements));
    second.push_back(allocate("optimizer", bucket.shard_elements));
    summed_.push_back(reduces_every_window() ? allocate("gradients", bucket.shard_elements)
                                             : shard_of(bucket.gradients, bucket));
  }
  sums_ = device.arena().allocate("optimizer", Dtype::f64, {std::ssize(summed_), 1, 1, 1});
  for (const Parameter& parameter : parameters.all()) {
    const Bucket& bucket = parameters.buckets()[parameter.bucket];
    const Parameters::OwnPart own = parameters.own_part(parameter);
    if (own.count == 0) continue;
    const auto part = [&](const Tensor& shard) { return shard.slice(own.first_in_shard, own.count); };
    segments_.push_back({&parameter, own.first_element, part(summed_[parameter.bucket]), part(bucket.master),
                         part(first[parameter.bucket]), part(second[parameter.bucket]),
                         rounds ? part(shard_of(bucket.weights, bucket)) : Tensor{}});
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
  under_way_[bucket.gradient_buffer] = index;
  const bool next_stands = index == 0 || (index == 1 && parameters_.config().tied_head);
  if (reduces_every_window() && !next_stands) make_room(index - 1);
}

void ShardedAdamW::zero_gradients() {
  if (!reduces_every_window()) return parameters_.zero_gradients();
  for (const Tensor& shard : summed_) parameters_.device().fill(0, shard);
}

void ShardedAdamW::begin_window() {
  if (!reduces_every_window()) return;
  make_room(std::ssize(summed_) - 1);
  if (parameters_.config().tied_head) make_room(0);
}

void ShardedAdamW::make_room(int64_t index) {
  const Bucket& bucket = parameters_.buckets()[index];
  settle(under_way_[bucket.gradient_buffer]);
  parameters_.device().fill(0, bucket.gradients);
}

void ShardedAdamW::settle(int64_t& index) {
  if (index == kNone) return;
  Backend& device = parameters_.device();
  device.wait(reduced_[index]);
  const Bucket& bucket = parameters_.buckets()[index];
  if (reduces_every_window()) device.add(shard_of(bucket.gradients, bucket), summed_[index]);
  index = kNone;
}

double ShardedAdamW::finish_reduce() {
  Backend& device = parameters_.device();
  for (int64_t& bucket : under_way_) settle(bucket);
  for (int64_t i = 0; i < std::ssize(summed_); ++i) device.sum_of_squares(summed_[i], sums_.slice(i, 1));
  read<double>(device, sums_, host_sums_);
  return std::accumulate(host_sums_.begin(), host_sums_.end(), 0.0);
}

void ShardedAdamW::update(const AdamW& settings) {
  Backend& device = parameters_.device();
  AdamW without_decay = settings;
  without_decay.weight_decay = 0;
  for (const Segment& segment : segments_) {
    device.adamw(segment.parameter->decays() ? settings : without_decay, segment.gradient,
                 segment.weights, segment.first_moment, segment.second_moment, segment.rounded);
  }
  for (size_t i = 0; i < gathered_.size(); ++i) {
    const Bucket& bucket = parameters_.buckets()[i];
    gathered_[i] = world_.all_gather(shard_of(bucket.weights, bucket), bucket.weights, device.record());
    device.arena().hold(bucket.weights, gathered_[i]);
  }
  for (const Event& event : gathered_) device.wait(event);
}

}  // namespace ringlet
