#pragma once

#include <memory_resource>
#include <vector>

#include "model/gpt_config.h"
#include "model/step.h"

namespace ringlet {

/// The inputs of the blocks, f32 [rows, width] each, from the forward pass to the backward pass: number i of block i, the
/// last of the head. All stay in the arena (region "checkpoints"), or, with an Offload, two at a time: number i is put
/// away while block i computes, and comes back while block i + 1 does in the backward pass.
class BlockInputs {
 public:
  /// `step` must outlive this.
  BlockInputs(Step& step, const GptConfig& config);

  /// Forward: where input i, the next one, is to be written.
  Tensor room_for_next();
  /// It has been written.
  void written();
  /// Backward, from the last to the first: input i.
  Tensor back(int64_t i);

  /// Of the Offload of a rank.
  static int64_t offloaded_bytes(const GptConfig& config, int64_t rows);

 private:
  Tensor allocate() const;
  /// Does it leave the arena? The last two are still there when the backward pass begins.
  bool leaves(int64_t i) const { return step_.offload != nullptr && i >= 0 && i < layers_ - 1; }
  int64_t offset_of(int64_t i) const { return i * inputs_.front().bytes(); }

  Step& step_;
  const int64_t layers_, width_;
  const Dtype dtype_;
  std::pmr::vector<Tensor> inputs_;
  std::pmr::vector<Event> moved_;  // away, then back; of those that leave
};

}  // namespace ringlet
