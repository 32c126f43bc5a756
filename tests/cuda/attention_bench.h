#pragma once

#include <array>
#include <vector>

#include "tests/cuda/device_bench.h"
#include "tests/support/attention_reference.h"

namespace ringlet::test {

/// In which order queries meet the pieces of keys.
using Order = std::vector<size_t>;

/// From the last piece down, and from the first one up.
std::vector<Order> both_ways(const AttentionCase& c);

/// [heads, rows]: sum over head_dim of d_output * output, both [rows, heads * head_dim].
Floats delta_of(const AttentionCase& c, const Doubles& output, const Floats& d_output);

/// The tensors of a case on a device. dq and dkv are random at first.
struct AttentionLayer {
  Tensor q, d_output, first_visible, output, lse, dq;
  AttentionState state;
  std::vector<Tensor> kv, dkv;  // of each piece of keys
  Floats dq_start;
  std::vector<Floats> dkv_start;
};

/// What the device added; dk, dv: [kv_heads, keys, head_dim].
struct AttentionGradients {
  Floats dq, dk, dv;
};

/// A test of attention, with every kernel that serves the setting.
///
/// Tolerances in bf16: P and dS are rounded to bf16 (2^-9) where tensor cores multiply them, the output once
/// more; that is 2e-3 in L2, more where differences are taken (dS).
class DeviceAttentionTest : public DeviceTest {
 protected:
  std::vector<int64_t> head_dims() const;
  double output_tolerance() const { return in_bf16() ? 5e-3 : kOutputTolerance; }
  double lse_tolerance() const { return in_bf16() ? 1e-4 : kOutputTolerance; }
  double dq_dk_tolerance() const { return in_bf16() ? 1e-2 : kGradientTolerance; }
  double dv_tolerance() const { return in_bf16() ? 5e-3 : kGradientTolerance; }

  AttentionLayer put_layer(const AttentionCase& c);
  /// Start, a step for each pair of pieces, finish.
  void forward(const AttentionCase& c, const AttentionLayer& layer, const Order& order);
  void backward(const AttentionCase& c, const AttentionLayer& layer, const Order& order, const Tensor& lse,
                const Tensor& delta);
  AttentionGradients gradients(const AttentionCase& c, const AttentionLayer& layer);
  /// state.output / state.sum as [rows, heads * head_dim]: what finish makes of it, before it is rounded.
  Doubles normalised(const AttentionCase& c, const AttentionLayer& layer);

  void expect_gradients(const AttentionGradients& actual, const ReferenceResult& expected, int64_t head_dim,
                        double widening = 1);
  /// Forward and backward in the given orders of key pieces, each against the reference, with tolerances
  /// `widening` times as wide. The backward pass gets the reference's lse and delta, so that it answers for
  /// itself alone.
  void check(AttentionCase c, const std::vector<Order>& orders, double widening = 1);
  void check(const AttentionCase& c) { check(c, {both_ways(c)[0]}); }

  /// Calls body(shape) for all groupings of heads and all head_dims.
  template <class Body>
  void for_each_shape(const Body& body) {
    for (const int64_t head_dim : head_dims()) {
      for (const HeadShape& heads : kHeads) with_shape({heads.heads, heads.kv_heads, head_dim}, body);
    }
  }
  /// The same for one grouping, another for each head_dim.
  template <class Body>
  void for_each_head_dim(const Body& body) {
    size_t turn = 0;
    for (const int64_t head_dim : head_dims()) {
      const HeadShape& heads = kHeads[turn++ % kHeads.size()];
      with_shape({heads.heads, heads.kv_heads, head_dim}, body);
    }
  }

 private:
  static constexpr std::array<HeadShape, 3> kHeads = {{{2, 2}, {4, 2}, {4, 1}}};

  template <class Body>
  void with_shape(const HeadShape& shape, const Body& body) {
    SCOPED_TRACE(testing::Message() << shape.heads << '/' << shape.kv_heads << " heads of "
                                    << shape.head_dim);
    body(shape);
  }
};

}  // namespace ringlet::test
