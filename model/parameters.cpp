#include "model/parameters.h"

#include <algorithm>
#include <cmath>

#include "kernels/host_values.h"
#include "kernels/random.h"

namespace ringlet {
namespace {

constexpr int64_t kShardAlignment = 16;  // elements: shards start on cache lines

std::string bucket_name(const std::string& parameter) {
  if (parameter.starts_with("embedding.")) return "embedding";
  if (parameter.starts_with("blocks.")) return parameter.substr(0, parameter.find('.', 7));
  return "head";
}

Tensor view_of(const Tensor& flat, const Parameter& parameter) {
  if (!flat) return {};
  int64_t size = 1;
  for (const int64_t n : parameter.shape) size *= n;
  const int64_t columns = parameter.shape.size() == 2 ? parameter.shape[1] : 1;
  return flat.slice(parameter.first_element, size).reshaped({size / columns, columns, 1, 1});
}

double initial_deviation(const std::string& name, int64_t layers) {
  const bool branch_output = name.ends_with("output.weight") || name.ends_with("down.weight");
  return branch_output ? 0.02 / std::sqrt(2.0 * double(layers)) : 0.02;
}

Tensor allocate(Backend& device, const char* region, Dtype dtype, int64_t elements) {
  const Tensor flat = device.arena().allocate(region, dtype, {elements, 1, 1, 1});
  device.fill(0, flat);
  return flat;
}

}  // namespace

Parameters::Parameters(const GptConfig& config, Backend& device, WorldPlace place, Gradients gradients)
    : config_(config), device_(device), place_(place), gradients_(gradients) {
  for (const ParameterShape& shape : parameter_shapes(config)) {
    const std::string bucket = bucket_name(shape.name);
    if (buckets_.empty() || buckets_.back().name != bucket) buckets_.push_back({.name = bucket});
    parameters_.push_back({.name = shape.name, .shape = shape.shape,
                           .bucket = int64_t(buckets_.size()) - 1,
                           .first_element = buckets_.back().used_elements});
    buckets_.back().used_elements += shape.size();
  }
  for (Bucket& bucket : buckets_) {
    const int64_t even = (bucket.used_elements + place.size - 1) / place.size;
    bucket.shard_elements = (even + kShardAlignment - 1) / kShardAlignment * kShardAlignment;
    allocate_weights(bucket);
  }
  if (gradients != Gradients::absent) allocate_gradients();
  for (Parameter& parameter : parameters_) {
    parameter.weight = view_of(buckets_[parameter.bucket].weights, parameter);
    parameter.gradient = view_of(buckets_[parameter.bucket].gradients, parameter);
  }
}

void Parameters::allocate_weights(Bucket& bucket) const {
  bucket.weights = allocate(device_, "weights", config_.dtype, bucket.shard_elements * place_.size);
  if (config_.dtype == Dtype::f32) {
    bucket.master = bucket.weights.slice(place_.rank * bucket.shard_elements, bucket.shard_elements);
  } else if (gradients_ != Gradients::absent) {
    bucket.master = allocate(device_, "master weights", Dtype::f32, bucket.shard_elements);
  }
}

void Parameters::allocate_gradients() {
  std::vector<int64_t> buffer_elements;
  for (int64_t i = 0; i < std::ssize(buckets_); ++i) {
    const bool tied_embedding = i == 0 && config_.tied_head;
    buckets_[i].gradient_buffer = gradients_ == Gradients::present ? i : tied_embedding ? 2 : i % 2;
    const size_t buffer = size_t(buckets_[i].gradient_buffer);
    if (buffer >= buffer_elements.size()) buffer_elements.resize(buffer + 1);
    buffer_elements[buffer] = std::max(buffer_elements[buffer], buckets_[i].weights.size());
  }
  std::vector<Tensor> buffers;
  for (const int64_t elements : buffer_elements) {
    buffers.push_back(allocate(device_, "gradients", Dtype::f32, elements));
  }
  for (Bucket& bucket : buckets_) {
    bucket.gradients = buffers[size_t(bucket.gradient_buffer)].slice(0, bucket.weights.size());
  }
}

void Parameters::initialise(uint64_t seed) {
  std::vector<float> values;
  for (const Parameter& parameter : parameters_) {
    values.assign(parameter.weight.size(), 1.0f);
    if (parameter.decays()) {
      const CounterRandom random(seed, hash_name(parameter.name));
      const double deviation = initial_deviation(parameter.name, config_.layers);
      for (size_t i = 0; i < values.size(); ++i) values[i] = float(deviation * random.normal(i));
    }
    set(parameter, values);
  }
}

void Parameters::set(const Parameter& parameter, std::span<const float> values) const {
  upload_rounded(device_, values, parameter.weight);
  const Bucket& bucket = buckets_[parameter.bucket];
  if (config_.dtype == Dtype::f32 || !bucket.master) return;
  const OwnPart own = own_part(parameter);
  if (own.count == 0) return;
  upload<float>(device_, values.subspan(own.first_element, own.count),
                bucket.master.slice(own.first_in_shard, own.count));
}

Parameters::OwnPart Parameters::own_part(const Parameter& parameter) const {
  const int64_t shard_elements = buckets_[parameter.bucket].shard_elements;
  const int64_t shard_begin = place_.rank * shard_elements;
  const int64_t begin = std::max(shard_begin, parameter.first_element);
  const int64_t end =
      std::min(shard_begin + shard_elements, parameter.first_element + parameter.weight.size());
  if (begin >= end) return {};
  return {begin - parameter.first_element, begin - shard_begin, end - begin};
}

const Parameter& Parameters::find(std::string_view name) const {
  const auto found = std::ranges::find(parameters_, name, &Parameter::name);
  CHECK(found != parameters_.end(), "no parameter is called ", name);
  return *found;
}

void Parameters::zero_gradients() const {
  for (const Bucket& bucket : buckets_) device_.fill(0, bucket.gradients);
}

}  // namespace ringlet
