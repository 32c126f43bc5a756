#include "model/block_inputs.h"

namespace ringlet {

BlockInputs::BlockInputs(Step& step, const GptConfig& config)
    : step_(step), layers_(config.layers), width_(config.width), dtype_(config.dtype),
      inputs_(step.host_memory), moved_(size_t(config.layers), step.host_memory) {}

Tensor BlockInputs::allocate() const {
  return step_.arena().allocate("checkpoints", dtype_, {step_.rows(), width_, 1, 1});
}

Tensor BlockInputs::room_for_next() {
  const int64_t i = std::ssize(inputs_);
  if (leaves(i - 2)) {
    step_.device.wait(moved_[size_t(i - 2)]);
    inputs_.push_back(inputs_[size_t(i - 2)]);
  } else {
    inputs_.push_back(allocate());
  }
  return inputs_.back();
}

void BlockInputs::written() {
  const int64_t i = std::ssize(inputs_) - 1;
  if (!leaves(i)) return;
  moved_[size_t(i)] = step_.offload->put(inputs_[size_t(i)], offset_of(i), step_.device.record());
  step_.arena().hold(inputs_[size_t(i)], moved_[size_t(i)]);
}

Tensor BlockInputs::back(int64_t i) {
  if (leaves(i)) step_.device.wait(moved_[size_t(i)]);
  // Input i + 1 is not needed any more: the one before this comes into its place.
  if (leaves(i - 1)) {
    const Tensor& place = inputs_[size_t(i - 1)];
    moved_[size_t(i - 1)] = step_.offload->fetch(offset_of(i - 1), place, step_.device.record());
    step_.arena().hold(place, moved_[size_t(i - 1)]);
  }
  return inputs_[size_t(i)];
}

int64_t BlockInputs::offloaded_bytes(const GptConfig& config, int64_t rows) {
  return (config.layers - 1) * rows * config.width * element_bytes(config.dtype);
}

}  // namespace ringlet
