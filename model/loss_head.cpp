#include "model/loss_head.h"

#include <algorithm>

namespace ringlet {

LossHead::LossHead(const Parameters& parameters)
    : width_(parameters.config().width),
      vocabulary_(parameters.config().vocabulary),
      epsilon_(parameters.config().norm_epsilon),
      norm_(parameters.find("final_norm.weight")),
      head_(parameters.find(parameters.config().tied_head ? "embedding.weight" : "head.weight")) {}

void LossHead::logits(const Tensor& x, const Tensor& logits, Step& step) const {
  const ArenaScope scratch(step.arena());
  const Tensor normed = step.arena().allocate("head chunk", x.dtype, x.shape);
  step.device.rms_norm_forward(x, norm_.weight, epsilon_, normed);
  step.device.matmul(normed, Transpose::no, head_.weight, Transpose::yes, Write::set, logits);
}

void LossHead::loss(const Tensor& x, Step& step, const SeeLogits& see) const {
  run(x, CrossEntropy::loss_only, 0, {}, step, see);
}

void LossHead::loss_and_gradient(const Tensor& x, float gradient_scale, const Tensor& dx,
                                 Step& step) const {
  run(x, CrossEntropy::loss_and_gradient, gradient_scale, dx, step, {});
}

void LossHead::run(const Tensor& x, CrossEntropy mode, float gradient_scale, const Tensor& dx,
                   Step& step, const SeeLogits& see) const {
  Backend& device = step.device;
  const ArenaScope scratch(step.arena());
  const auto matrix = [&](int64_t columns) {
    const int64_t rows = std::min(step.rows(), step.settings.head_chunk);
    return step.arena().allocate("head chunk", x.dtype, {rows, columns, 1, 1});
  };
  const Tensor all_logits = matrix(vocabulary_), all_normed = matrix(width_);
  const bool with_gradient = mode == CrossEntropy::loss_and_gradient;
  const Tensor all_d_normed = with_gradient ? matrix(width_) : Tensor{};
  for_each_chunk(step.rows(), step.settings.head_chunk, [&](int64_t first, int64_t count) {
    const Tensor rows = x.slice(first, count), logits = all_logits.slice(0, count);
    const Tensor normed = all_normed.slice(0, count);
    device.rms_norm_forward(rows, norm_.weight, epsilon_, normed);
    step.device.matmul(normed, Transpose::no, head_.weight, Transpose::yes, Write::set, logits);
    if (see) see(first, logits);
    device.cross_entropy(logits, step.labels.slice(first, count), mode, gradient_scale,
                         step.losses.slice(first, count));
    if (!with_gradient) return;
    const Tensor d_normed = all_d_normed.slice(0, count);
    device.matmul(logits, Transpose::no, head_.weight, Transpose::no, Write::set, d_normed);
    device.matmul(logits, Transpose::yes, normed, Transpose::no, Write::add, head_.gradient);
    device.rms_norm_backward(rows, norm_.weight, epsilon_, d_normed, Write::set,
                             dx.slice(first, count), norm_.gradient);
  });
}

}  // namespace ringlet
