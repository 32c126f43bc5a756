#pragma once

#include <string>

#include "model/layer.h"
#include "model/parameters.h"

namespace ringlet {

/// The MLP branch of a block with its norm: y += Wdown (silu(gate) * up), [gate | up] = Wgate_up norm(x).
/// Runs in chunks of tokens, so that its activations exist for `mlp_chunk` tokens at a time (none: kept for all).
/// forward adds to y, which may be x itself when nothing is kept; backward adds to dx, which may be dy itself.
class Mlp : public Layer {
 public:
  Mlp(const Parameters& parameters, const std::string& block);
  void forward(const Tensor& x, const Tensor& y, Step& step) override;
  void restore(const Tensor& x, Step& step) override;
  void backward(const Tensor& dy, const Tensor& dx, Step& step) override;

 private:
  struct Activations {
    Tensor normed, gate_up, hidden;
    Activations slice(int64_t first, int64_t count) const;
  };
  Activations allocate(const char* region, int64_t rows, Step& step) const;
  void compute(const Tensor& x, const Activations& chunk, Step& step) const;
  void backward_chunk(const Tensor& x, const Activations& chunk, const Tensor& dy, const Tensor& dx,
                      Step& step) const;

  int64_t width_, hidden_width_;
  float epsilon_;
  Dtype dtype_;
  const Parameter &norm_, &gate_up_weight_, &down_weight_;
  Tensor x_;
  Activations kept_;
};

}  // namespace ringlet
