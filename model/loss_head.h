#pragma once

#include "model/parameters.h"
#include "model/step.h"

namespace ringlet {

/// Final norm, head and cross entropy, in chunks of tokens: logits exist for `head_chunk` tokens at a time.
class LossHead {
 public:
  explicit LossHead(const Parameters& parameters);

  /// step.losses = loss of each row; dx: [rows, width] = gradient of gradient_scale * their sum. Adds to the
  /// gradients of the final norm and the head (tied: the embedding).
  void loss_and_gradient(const Tensor& x, float gradient_scale, const Tensor& dx, Step& step) const;
  /// step.losses = loss of each row.
  void loss(const Tensor& x, Step& step) const;
  /// logits: [rows, vocabulary] of x: [rows, width].
  void logits(const Tensor& x, const Tensor& logits, Step& step) const;

 private:
  void run(const Tensor& x, CrossEntropy mode, float gradient_scale, const Tensor& dx,
           Step& step) const;

  int64_t width_, vocabulary_;
  float epsilon_;
  const Parameter &norm_, &head_;
};

}  // namespace ringlet
