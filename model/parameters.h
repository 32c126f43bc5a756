#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/backend.h"
#include "model/gpt_config.h"

namespace ringlet {

/// One named weight of the model and its gradient: views into the bucket of its layer.
struct Parameter {
  std::string name;
  std::vector<int64_t> shape{};
  int64_t bucket = 0, first_element = 0;  // where it stands: its bucket, and the offset there
  Tensor weight{};    // of the model's dtype, [out, in] or [n]
  Tensor gradient{};  // f32, same shape; absent without gradients
  bool decays() const { return shape.size() == 2; }
};

/// All parameters of one layer as one flat array, cut evenly over the ranks of the world and padded with zeros to
/// a multiple of them: the unit of reduce-scatter, optimizer step and all-gather.
struct Bucket {
  std::string name;  // "embedding", "blocks.3", "head"
  int64_t used_elements = 0;
  int64_t shard_elements = 0;  // per rank
  int64_t gradient_buffer = 0;  // where its gradients stand; buckets with the same number take turns there
  Tensor weights{};    // of the model's dtype, [world_size * shard_elements]
  Tensor master{};     // f32 [shard_elements], this rank's share: what the optimizer updates; of f32 weights a view, beside
                       // bf16 weights memory of its own, absent without gradients
  Tensor gradients{};  // f32 [world_size * shard_elements]
};

/// Which rank of how many.
struct WorldPlace {
  int rank = 0, size = 1;
};

/// The weights of a model in the arena, replicated on every rank: the only list of parameters. Bucket 0 is the
/// embedding, bucket 1 + i block i, the last one the final norm and the untied head.
class Parameters {
 public:
  /// present: each bucket has its own. in_turns: a bucket has its own only from the beginning to the end of its backward;
  /// neighbours stand in two buffers by turns, a tied embedding, which the head begins and the embedding ends, in a third.
  enum class Gradients : uint8_t { absent, present, in_turns };

  /// Allocates in regions "weights", "master weights" and "gradients"; the content is unspecified but for the padding.
  Parameters(const GptConfig& config, Backend& device, WorldPlace place, Gradients gradients);

  /// Fresh weights: normal with deviation 0.02 (branch outputs: 0.02 / sqrt(2 * layers)), norms 1. Every element is a
  /// pure function of (seed, name, index), so all worlds and devices start bit-equal.
  void initialise(uint64_t seed);
  /// One parameter's values: f32 to its master, rounded to its weight.
  void set(const Parameter& parameter, std::span<const float> values) const;

  /// What this rank owns of a parameter: `count` elements (0: none) from `first_element` of it, which stand from
  /// `first_in_shard` of its bucket's shard.
  struct OwnPart {
    int64_t first_element = 0, first_in_shard = 0, count = 0;
  };
  OwnPart own_part(const Parameter& parameter) const;

  /// Throws Error when there is no such parameter.
  const Parameter& find(std::string_view name) const;
  std::span<const Parameter> all() const { return parameters_; }
  std::span<const Bucket> buckets() const { return buckets_; }
  Gradients gradients() const { return gradients_; }
  void zero_gradients() const;

  const GptConfig& config() const { return config_; }
  Backend& device() const { return device_; }

 private:
  void allocate_weights(Bucket& bucket) const;
  void allocate_gradients();

  GptConfig config_;
  Backend& device_;
  WorldPlace place_;
  Gradients gradients_;
  std::vector<Parameter> parameters_;
  std::vector<Bucket> buckets_;
};

}  // namespace ringlet
