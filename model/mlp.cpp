#include "model/mlp.h"

#include <algorithm>

namespace ringlet {

Mlp::Mlp(const Parameters& parameters, const std::string& block)
    : width_(parameters.config().width),
      hidden_width_(parameters.config().mlp_width),
      epsilon_(parameters.config().norm_epsilon),
      dtype_(parameters.config().dtype),
      norm_(parameters.find(block + ".mlp_norm.weight")),
      gate_up_weight_(parameters.find(block + ".mlp.gate_up.weight")),
      down_weight_(parameters.find(block + ".mlp.down.weight")) {}

Mlp::Activations Mlp::Activations::slice(int64_t first, int64_t count) const {
  return {normed.slice(first, count), gate_up.slice(first, count), hidden.slice(first, count)};
}

Mlp::Activations Mlp::allocate(const char* region, int64_t rows, Step& step) const {
  const auto matrix = [&](int64_t columns) {
    return step.arena().allocate(region, dtype_, {rows, columns, 1, 1});
  };
  return {matrix(width_), matrix(2 * hidden_width_), matrix(hidden_width_)};
}

void Mlp::compute(const Tensor& x, const Activations& chunk, Step& step) const {
  step.device.rms_norm_forward(x, norm_.weight, epsilon_, chunk.normed);
  step.device.matmul(chunk.normed, Transpose::no, gate_up_weight_.weight, Transpose::yes, Write::set,
                     chunk.gate_up);
  step.device.swiglu_forward(chunk.gate_up, chunk.hidden);
}

void Mlp::forward(const Tensor& x, const Tensor& y, Step& step) {
  x_ = x;
  const bool keep = step.keeps_everything();
  if (keep) kept_ = allocate("mlp", step.rows(), step);
  const ArenaScope scratch(step.arena());
  if (!keep) kept_ = allocate("mlp", std::min(step.rows(), step.settings.mlp_chunk), step);
  for_each_chunk(step.rows(), step.settings.mlp_chunk, [&](int64_t first, int64_t count) {
    const Activations chunk = kept_.slice(keep ? first : 0, count);
    compute(x.slice(first, count), chunk, step);
    step.device.matmul(chunk.hidden, Transpose::no, down_weight_.weight, Transpose::yes, Write::add,
                       y.slice(first, count));
  });
}

void Mlp::restore(const Tensor& x, Step&) { x_ = x; }

void Mlp::backward(const Tensor& dy, const Tensor& dx, Step& step) {
  const bool kept = step.keeps_everything();
  const ArenaScope scratch(step.arena());
  if (!kept) kept_ = allocate("mlp", std::min(step.rows(), step.settings.mlp_chunk), step);
  for_each_chunk(step.rows(), step.settings.mlp_chunk, [&](int64_t first, int64_t count) {
    const Activations chunk = kept_.slice(kept ? first : 0, count);
    const Tensor x = x_.slice(first, count);
    if (!kept) compute(x, chunk, step);
    backward_chunk(x, chunk, dy.slice(first, count), dx.slice(first, count), step);
  });
}

void Mlp::backward_chunk(const Tensor& x, const Activations& chunk, const Tensor& dy, const Tensor& dx,
                         Step& step) const {
  const ArenaScope scratch(step.arena());
  const auto matrix = [&](int64_t columns) {
    return step.arena().allocate("activation gradients", dtype_, {x.rows(), columns, 1, 1});
  };
  Backend& device = step.device;
  const Tensor d_hidden = matrix(hidden_width_), d_normed = matrix(width_);
  device.matmul(dy, Transpose::no, down_weight_.weight, Transpose::no, Write::set, d_hidden);
  device.matmul(dy, Transpose::yes, chunk.hidden, Transpose::no, Write::add, down_weight_.gradient);
  device.swiglu_backward(chunk.gate_up, d_hidden, chunk.gate_up);
  device.matmul(chunk.gate_up, Transpose::yes, chunk.normed, Transpose::no, Write::add,
                gate_up_weight_.gradient);
  device.matmul(chunk.gate_up, Transpose::no, gate_up_weight_.weight, Transpose::no, Write::set,
                d_normed);
  device.rms_norm_backward(x, norm_.weight, epsilon_, d_normed, Write::add, dx, norm_.gradient);
}

}  // namespace ringlet
