#pragma once

#include <string>

#include "model/layer.h"
#include "model/parameters.h"

namespace ringlet {

/// Keys and values of the positions so far, for one layer: [2 * kv_heads, capacity, head_dim], zeroed before use.
struct LayerCache {
  Tensor kv;
  int64_t used_rows = 0;
};

/// The attention branch of a block with its norm: y += Wo ring_attention(split(Wqkv norm(x))).
/// forward adds to y; backward adds to dx, which may be dy itself.
/// Keeps: output and LSE (selective), q, keys and values too (none).
class Attention : public Layer {
 public:
  Attention(const Parameters& parameters, const std::string& block);
  void forward(const Tensor& x, const Tensor& y, Step& step) override;
  void restore(const Tensor& x, Step& step) override;
  void backward(const Tensor& dy, const Tensor& dx, Step& step) override;

  /// y += the output projection of what forward or restore left: the second half of forward.
  void add_output(const Tensor& y, Step& step);

  /// forward for the rows after those in the cache, alone on its ring; appends their keys and values.
  void extend(const Tensor& x, const Tensor& y, LayerCache& cache, Step& step);

 private:
  void allocate_projection(Step& step);
  void allocate_output(Step& step);
  void project(const Tensor& x, Step& step);
  void backward_projection(const Tensor& dq, const Tensor& dkv, const Tensor& dx, Step& step);
  QkvSplit split(const Step& step) const;

  HeadShape shape_;
  float epsilon_;
  Dtype dtype_;
  int64_t width_;
  const Parameter &norm_, &qkv_weight_, &output_weight_;
  const Parameter *q_norm_ = nullptr, *k_norm_ = nullptr;  // with QK-norm
  Tensor x_, qkv_, q_, kv_, output_, lse_;
};

}  // namespace ringlet
