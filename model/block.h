#pragma once

#include <string>

#include "model/attention.h"
#include "model/mlp.h"

namespace ringlet {

/// A pre-norm transformer block: mid = x + attention(x), y = mid + mlp(mid). backward sets dx, which may be dy.
class Block : public Layer {
 public:
  Block(const Parameters& parameters, const std::string& name)
      : attention_(parameters, name), mlp_(parameters, name) {}
  void forward(const Tensor& x, const Tensor& y, Step& step) override;
  void restore(const Tensor& x, Step& step) override;
  void backward(const Tensor& dy, const Tensor& dx, Step& step) override;
  /// forward for the rows after those in the cache.
  void extend(const Tensor& x, const Tensor& y, LayerCache& cache, Step& step);

 private:
  Attention attention_;
  Mlp mlp_;
  Tensor mid_;
};

}  // namespace ringlet
