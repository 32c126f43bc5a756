#pragma once

#include "model/step.h"

namespace ringlet {

/// A part of the model that maps rows to rows: x, y, dx, dy are [rows, width], owned by the caller.
/// A training step calls forward once, then restore and backward once, in reverse order of the layers. What a
/// layer keeps in between it allocates on the arena before its own scratch; the caller rewinds.
class Layer {
 public:
  virtual ~Layer() = default;
  /// x must stay unchanged until backward when the pass is a training one.
  virtual void forward(const Tensor& x, const Tensor& y, Step& step) = 0;
  /// Rebuilds what the recompute policy dropped, from x as in the forward pass. Bit-equal to what was dropped.
  virtual void restore(const Tensor& x, Step& step) = 0;
  /// Adds to the parameters' gradients.
  virtual void backward(const Tensor& dy, const Tensor& dx, Step& step) = 0;
};

}  // namespace ringlet
