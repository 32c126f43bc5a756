#include "model/attention.h"

#include "model/ring_attention.h"

namespace ringlet {

Attention::Attention(const Parameters& parameters, const std::string& block)
    : shape_(parameters.config().heads),
      epsilon_(parameters.config().norm_epsilon),
      dtype_(parameters.config().dtype),
      width_(parameters.config().width),
      norm_(parameters.find(block + ".attention_norm.weight")),
      qkv_weight_(parameters.find(block + ".attention.qkv.weight")),
      output_weight_(parameters.find(block + ".attention.output.weight")) {
  if (parameters.config().qk_norm) {
    q_norm_ = &parameters.find(block + ".attention.q_norm.weight");
    k_norm_ = &parameters.find(block + ".attention.k_norm.weight");
  }
}

QkvSplit Attention::split(const Step& step) const {
  return {shape_, step.pieces(), step.rotary, q_norm_ ? q_norm_->weight : Tensor{},
          k_norm_ ? k_norm_->weight : Tensor{}, epsilon_};
}

void Attention::allocate_projection(Step& step) {
  Arena& arena = step.arena();
  q_ = arena.allocate("attention", dtype_, {shape_.heads, step.rows(), shape_.head_dim, 1});
  kv_ = arena.allocate("attention", dtype_,
                       {2 * shape_.kv_heads * shape_.head_dim * step.rows(), 1, 1, 1});
  if (q_norm_ != nullptr) {  // its backward needs what was normalised
    qkv_ = arena.allocate("attention", dtype_, {step.rows(), shape_.qkv_width(), 1, 1});
  }
}

void Attention::allocate_output(Step& step) {
  Arena& arena = step.arena();
  const char* region = step.keeps_attention() ? "checkpoints" : "attention";
  output_ = arena.allocate(region, dtype_, {step.rows(), shape_.q_width(), 1, 1});
  lse_ = arena.allocate(region, Dtype::f32, {shape_.heads, step.rows(), 1, 1});
}

void Attention::project(const Tensor& x, Step& step) {
  const ArenaScope scratch(step.arena());
  const auto allocate = [&](int64_t columns) {
    return step.arena().allocate("activations", dtype_, {step.rows(), columns, 1, 1});
  };
  const Tensor qkv = qkv_ ? qkv_ : allocate(shape_.qkv_width());
  const Tensor normed = allocate(width_);
  step.device.rms_norm_forward(x, norm_.weight, epsilon_, normed);
  step.device.matmul(normed, Transpose::no, qkv_weight_.weight, Transpose::yes, Write::set, qkv);
  step.device.qkv_split_forward(split(step), qkv, q_, kv_);
}

void Attention::add_output(const Tensor& y, Step& step) {
  step.device.matmul(output_, Transpose::no, output_weight_.weight, Transpose::yes, Write::add, y);
}

void Attention::forward(const Tensor& x, const Tensor& y, Step& step) {
  x_ = x;
  if (step.keeps_attention()) allocate_output(step);
  if (step.keeps_everything()) allocate_projection(step);
  const ArenaScope scratch(step.arena());
  if (!step.keeps_attention()) allocate_output(step);
  if (!step.keeps_everything()) allocate_projection(step);
  project(x, step);
  ring_attention_forward(step, shape_, q_, kv_, output_, lse_);
  add_output(y, step);
}

void Attention::restore(const Tensor& x, Step& step) {
  x_ = x;
  if (step.keeps_everything()) return;
  if (!step.keeps_attention()) allocate_output(step);
  allocate_projection(step);
  project(x, step);
  if (!step.keeps_attention()) ring_attention_forward(step, shape_, q_, kv_, output_, lse_);
}

void Attention::backward(const Tensor& dy, const Tensor& dx, Step& step) {
  const ArenaScope scope(step.arena());
  const auto allocate = [&](Dtype dtype, Shape shape) {
    return step.arena().allocate("activation gradients", dtype, shape);
  };
  const Tensor dq = allocate(Dtype::f32, q_.shape), dkv = allocate(Dtype::f32, kv_.shape);
  step.device.fill(0, dq);
  {
    const ArenaScope ring_scope(step.arena());
    const Tensor d_output = allocate(dtype_, output_.shape), delta = allocate(Dtype::f32, lse_.shape);
    step.device.matmul(dy, Transpose::no, output_weight_.weight, Transpose::no, Write::set, d_output);
    step.device.matmul(dy, Transpose::yes, output_, Transpose::no, Write::add,
                       output_weight_.gradient);
    step.device.attention_delta(shape_, output_, d_output, delta);
    ring_attention_backward(step, shape_, q_, kv_, {d_output, lse_, delta}, dq, dkv);
  }
  backward_projection(dq, dkv, dx, step);
}

void Attention::backward_projection(const Tensor& dq, const Tensor& dkv, const Tensor& dx,
                                    Step& step) {
  const auto allocate = [&](int64_t columns) {
    return step.arena().allocate("activation gradients", dtype_, {step.rows(), columns, 1, 1});
  };
  const Tensor d_qkv = qkv_ ? qkv_ : allocate(shape_.qkv_width());
  step.device.qkv_split_backward(split(step), qkv_, dq, dkv, d_qkv,
                                 q_norm_ ? q_norm_->gradient : Tensor{},
                                 k_norm_ ? k_norm_->gradient : Tensor{});
  const Tensor normed = allocate(width_), d_normed = allocate(width_);
  step.device.rms_norm_forward(x_, norm_.weight, epsilon_, normed);
  step.device.matmul(d_qkv, Transpose::yes, normed, Transpose::no, Write::add, qkv_weight_.gradient);
  step.device.matmul(d_qkv, Transpose::no, qkv_weight_.weight, Transpose::no, Write::set, d_normed);
  step.device.rms_norm_backward(x_, norm_.weight, epsilon_, d_normed, Write::add, dx, norm_.gradient);
}

void Attention::extend(const Tensor& x, const Tensor& y, LayerCache& cache, Step& step) {
  CHECK(step.ring.size() == 1 && step.pieces().size() == 1, "a cache belongs to one rank");
  const Piece& rows = step.pieces().front();
  const int64_t capacity = cache.kv.shape[1];
  CHECK(rows.first_position == cache.used_rows && rows.last_position() < capacity, "rows ",
        rows.first_position, " to ", rows.last_position(), " after ", cache.used_rows, " of ", capacity);
  const ArenaScope scratch(step.arena());
  allocate_output(step);
  allocate_projection(step);
  project(x, step);
  step.device.copy_rows(kv_.reshaped({2 * shape_.kv_heads, rows.row_count, shape_.head_dim, 1}),
                        cache.used_rows, cache.kv);
  const auto allocate = [&](int64_t width) {
    return step.arena().allocate("attention state", Dtype::f32, {shape_.heads, step.rows(), width, 1});
  };
  const AttentionState state{allocate(shape_.head_dim), allocate(1), allocate(1)};
  step.device.attention_start(state);
  // Rows of the cache that are not yet written stand for later positions: the causal mask hides them.
  step.device.attention_forward(
      {shape_, rows, Piece{0, 1, 0, capacity}, step.first_visible}, q_,
      cache.kv.reshaped({2, shape_.kv_heads, capacity, shape_.head_dim}), state);
  step.device.attention_finish(shape_, state, output_, lse_);
  add_output(y, step);
  cache.used_rows += rows.row_count;
}

}  // namespace ringlet
