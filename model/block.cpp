#include "model/block.h"

namespace ringlet {

void Block::forward(const Tensor& x, const Tensor& y, Step& step) {
  const bool keep = step.keeps_everything();
  mid_ = keep ? step.arena().allocate("activations", x.dtype, x.shape) : y;
  step.device.copy(x, mid_);
  attention_.forward(x, mid_, step);
  if (keep) step.device.copy(mid_, y);
  mlp_.forward(mid_, y, step);
}

void Block::restore(const Tensor& x, Step& step) {
  attention_.restore(x, step);
  if (!step.keeps_everything()) {
    mid_ = step.arena().allocate("activations", x.dtype, x.shape);
    step.device.copy(x, mid_);
    attention_.add_output(mid_, step);
  }
  mlp_.restore(mid_, step);
}

void Block::backward(const Tensor& dy, const Tensor& dx, Step& step) {
  if (dx.data != dy.data) step.device.copy(dy, dx);
  mlp_.backward(dx, dx, step);
  attention_.backward(dx, dx, step);
}

void Block::extend(const Tensor& x, const Tensor& y, LayerCache& cache, Step& step) {
  step.device.copy(x, y);
  attention_.extend(x, y, cache, step);
  mlp_.forward(y, y, step);
}

}  // namespace ringlet
