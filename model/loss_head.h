#pragma once

#include <functional>

#include "model/parameters.h"
#include "model/step.h"

namespace ringlet {

/// Looks at the logits of the rows from first_row on, [count, vocabulary], before they are gone.
using SeeLogits = std::function<void(int64_t first_row, const Tensor& logits)>;

/// Final norm, head and cross entropy, in chunks of tokens: logits exist for `head_chunk` tokens at a time.
class LossHead {
 public:
  explicit LossHead(const Parameters& parameters);

  /// step.losses = loss of each row; dx: [rows, width] = gradient of gradient_scale * their sum. Adds to the
  /// gradients of the final norm and the head (tied: the embedding).
  void loss_and_gradient(const Tensor& x, float gradient_scale, const Tensor& dx, Step& step) const;
  /// step.losses = loss of each row. `see`, where there is one, is called for every chunk.
  void loss(const Tensor& x, Step& step, const SeeLogits& see) const;
  /// logits: [rows, vocabulary] of x: [rows, width].
  void logits(const Tensor& x, const Tensor& logits, Step& step) const;

 private:
  void run(const Tensor& x, CrossEntropy mode, float gradient_scale, const Tensor& dx, Step& step,
           const SeeLogits& see) const;

  int64_t width_, vocabulary_;
  float epsilon_;
  const Parameter &norm_, &head_;
};

}  // namespace ringlet
