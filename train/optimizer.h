#pragma once

#include <vector>

#include "kernels/comm.h"
#include "model/parameters.h"

namespace ringlet {

/// AdamW whose moments, and whose work, are cut over all ranks of the world (ZeRO-1, arXiv:1910.02054), and whose summed
/// gradients are too where the parameters' gradients stand in turns (ZeRO-2). Each bucket is reduce-scattered as soon as its
/// backward ends, each rank updates its own shard of the f32 weights and rounds them to the model's dtype, and an all-gather
/// brings every rank the new weights.
/// Weight decay applies to matrices only.
class ShardedAdamW {
 public:
  /// Allocates the moments in region "optimizer", and in region "gradients" the shards of ZeRO-2, zeroed. Both references
  /// must outlive the optimizer.
  ShardedAdamW(const Parameters& parameters, Comm& world);

  /// A new sum of gradients begins. The one before must have been finished.
  void zero_gradients();
  /// Are gradients summed over the world after every window (ZeRO-2), or once, after the last?
  bool reduces_every_window() const { return parameters_.gradients() == Parameters::Gradients::in_turns; }
  /// Before a window whose gradients will be reduced, or added to those that will be.
  void begin_window();
  /// Starts the sum of this bucket's gradients over the world, and makes room for those of the bucket before it. Every
  /// rank, every bucket, from the last to the first.
  void start_reduce(int64_t bucket);

  /// Waits for all sums. Returns the sum of squares of this rank's shards: over all ranks they add up to the
  /// squared norm of the whole gradient. Waits for the device.
  double finish_reduce();

  /// One update from the summed gradients; then all ranks hold the new weights. `settings.weight_decay` applies to
  /// matrices, 0 to the rest.
  void update(const AdamW& settings);

  /// A stretch of one parameter that this rank owns.
  struct Segment {
    const Parameter* parameter;
    int64_t first_element;  // within the parameter
    Tensor gradient, weights, first_moment, second_moment;  // f32 [n]
    Tensor rounded;  // bf16 [n]: its weights as the model reads them; absent where that is f32
  };
  std::span<const Segment> segments() const { return segments_; }

 private:
  static constexpr int64_t kNone = -1;
  Tensor shard_of(const Tensor& flat, const Bucket& bucket) const;
  void make_room(int64_t bucket);
  void settle(int64_t& bucket);

  const Parameters& parameters_;
  Comm& world_;
  std::vector<Segment> segments_;
  std::vector<Tensor> summed_;      // by bucket: this rank's shard of the summed gradient
  std::vector<int64_t> under_way_;  // by gradient buffer: the bucket whose sum is, or kNone
  std::vector<Event> reduced_;      // by bucket
  std::vector<Event> gathered_;     // by bucket
  Tensor sums_;                     // f64, by bucket
  std::vector<double> host_sums_;
};

}  // namespace ringlet
