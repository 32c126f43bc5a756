#include "model/parameters.h"

#include <algorithm>
#include <cmath>

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

}  // namespace

Parameters::Parameters(const GptConfig& config, Backend& device, int world_size, Gradients gradients)
    : config_(config), device_(device) {
  for (const ParameterShape& shape : parameter_shapes(config)) {
    const std::string bucket = bucket_name(shape.name);
    if (buckets_.empty() || buckets_.back().name != bucket) buckets_.push_back({.name = bucket});
    parameters_.push_back({.name = shape.name, .shape = shape.shape,
                           .bucket = int64_t(buckets_.size()) - 1,
                           .first_element = buckets_.back().used_elements});
    buckets_.back().used_elements += shape.size();
  }
  const auto allocate = [&](const char* region, int64_t elements) {
    const Tensor flat = device.arena().allocate(region, Dtype::f32, {elements, 1, 1, 1});
    device.fill(0, flat);
    return flat;
  };
  for (Bucket& bucket : buckets_) {
    const int64_t even = (bucket.used_elements + world_size - 1) / world_size;
    bucket.shard_elements = (even + kShardAlignment - 1) / kShardAlignment * kShardAlignment;
    bucket.weights = allocate("weights", bucket.shard_elements * world_size);
    if (gradients == Gradients::present) {
      bucket.gradients = allocate("gradients", bucket.shard_elements * world_size);
    }
  }
  for (Parameter& parameter : parameters_) {
    parameter.weight = view_of(buckets_[parameter.bucket].weights, parameter);
    parameter.gradient = view_of(buckets_[parameter.bucket].gradients, parameter);
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
    upload<float>(device_, values, parameter.weight);
  }
}

const Parameter& Parameters::find(std::string_view name) const {
  const auto found = std::ranges::find(parameters_, name, &Parameter::name);
  CHECK(found != parameters_.end(), "no parameter is called ", name);
  return *found;
}

void Parameters::zero_gradients() {
  for (const Bucket& bucket : buckets_) device_.fill(0, bucket.gradients);
}

}  // namespace ringlet
