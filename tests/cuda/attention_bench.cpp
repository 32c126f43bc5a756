#include "tests/cuda/attention_bench.h"

#include <cmath>
#include <numeric>
#include <utility>

namespace ringlet::test {
namespace {

/// The gradients of every other piece of keys are set by the first queries, wherever those are; of the rest added to.
bool is_set(size_t key) { return key % 2 == 0; }

Floats minus(Floats values, const Floats& start) {
  for (size_t i = 0; i < values.size(); ++i) values[i] -= start[i];
  return values;
}

}  // namespace

std::vector<Order> both_ways(const AttentionCase& c) {
  Order up(c.keys.size());
  std::iota(up.begin(), up.end(), size_t{0});
  return {Order(up.rbegin(), up.rend()), up};
}

Floats delta_of(const AttentionCase& c, const Doubles& output, const Floats& d_output) {
  const int64_t width = c.shape.q_width(), rows = int64_t(output.size()) / width, n = c.shape.head_dim;
  Floats delta;
  for (int64_t head = 0; head < c.shape.heads; ++head) {
    for (int64_t row = 0; row < rows; ++row) {
      double sum = 0;
      for (int64_t i = head * n; i < (head + 1) * n; ++i)
        sum += output[row * width + i] * double(d_output[row * width + i]);
      delta.push_back(float(sum));
    }
  }
  return delta;
}

std::vector<int64_t> DeviceAttentionTest::head_dims() const {
  if (!on_cuda()) return {8, 64};
  if (GetParam().attention == CudaAttention::plain) return {8, 32, 64, 128};
  return {64, 128};
}

AttentionLayer DeviceAttentionTest::put_layer(const AttentionCase& c) {
  const int64_t rows = int64_t(positions_of(c.queries).size()), heads = c.shape.heads, n = c.shape.head_dim;
  AttentionLayer layer;
  layer.q = put(c.q(), {heads, rows, n, 1});
  layer.d_output = put(c.d_output(), {rows, c.shape.q_width(), 1, 1});
  layer.first_visible = put_positions(c.first_visible_of_rows());
  layer.state = {poisoned_f32({heads, rows, n, 1}), poisoned_f32({heads, rows, 1, 1}),
                 poisoned_f32({heads, rows, 1, 1})};
  layer.output = poisoned({rows, c.shape.q_width(), 1, 1});
  layer.lse = poisoned_f32({heads, rows, 1, 1});
  layer.dq_start = random_floats(heads * rows * n, 0.1);
  layer.dq = put_f32(layer.dq_start, layer.q.shape);
  for (const Piece& piece : c.keys) {
    Floats both = c.k({piece});
    const Floats values = c.v({piece});
    both.insert(both.end(), values.begin(), values.end());
    layer.kv.push_back(put(both, {2, c.shape.kv_heads, piece.row_count, n}));
    const bool set = is_set(layer.dkv.size());
    layer.dkv_start.push_back(set ? Floats(both.size()) : random_floats(int64_t(both.size()), 0.1));
    layer.dkv.push_back(set ? poisoned_f32(layer.kv.back().shape)
                            : put_f32(layer.dkv_start.back(), layer.kv.back().shape));
  }
  return layer;
}

void DeviceAttentionTest::forward(const AttentionCase& c, const AttentionLayer& layer, const Order& order) {
  device().attention_start(layer.state);
  for (const size_t key : order) {
    for (const Piece& queries : c.queries) {
      device().attention_forward({c.shape, queries, c.keys[key], layer.first_visible}, layer.q, layer.kv[key],
                                 layer.state);
    }
  }
  device().attention_finish(c.shape, layer.state, layer.output, layer.lse);
}

void DeviceAttentionTest::backward(const AttentionCase& c, const AttentionLayer& layer, const Order& order,
                                   const Tensor& lse, const Tensor& delta) {
  for (const size_t key : order) {
    Write write = is_set(key) ? Write::set : Write::add;
    for (const Piece& queries : c.queries) {
      device().attention_backward({c.shape, queries, c.keys[key], layer.first_visible}, layer.q,
                                  layer.kv[key], {layer.d_output, lse, delta}, layer.dq,
                                  std::exchange(write, Write::add), layer.dkv[key]);
    }
  }
}

AttentionGradients DeviceAttentionTest::gradients(const AttentionCase& c, const AttentionLayer& layer) {
  AttentionGradients result{minus(get(layer.dq), layer.dq_start), {}, {}};
  std::vector<Floats> parts;
  for (size_t i = 0; i < layer.dkv.size(); ++i) parts.push_back(minus(get(layer.dkv[i]), layer.dkv_start[i]));
  for (int64_t half = 0; half < 2; ++half) {
    for (int64_t head = 0; head < c.shape.kv_heads; ++head) {
      for (const Floats& part : parts) {
        const auto block = int64_t(part.size()) / (2 * c.shape.kv_heads);
        const auto begin = part.begin() + (half * c.shape.kv_heads + head) * block;
        Floats& to = half == 0 ? result.dk : result.dv;
        to.insert(to.end(), begin, begin + block);
      }
    }
  }
  return result;
}

Doubles DeviceAttentionTest::normalised(const AttentionCase& c, const AttentionLayer& layer) {
  const Floats output = get(layer.state.output), sum = get(layer.state.sum);
  const int64_t rows = layer.q.shape[1], n = c.shape.head_dim, heads = c.shape.heads;
  Doubles result(output.size());
  for (int64_t head = 0; head < heads; ++head) {
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t i = 0; i < n; ++i) {
        const int64_t at = (head * rows + row) * n + i;
        result[(row * heads + head) * n + i] = double(output[at]) / double(sum[head * rows + row]);
      }
    }
  }
  return result;
}

void DeviceAttentionTest::expect_gradients(const AttentionGradients& actual, const ReferenceResult& expected,
                                           int64_t head_dim, double widening) {
  expect_close(actual.dq, expected.dq, head_dim, widening * dq_dk_tolerance(), "dq");
  expect_close(actual.dk, expected.dk, head_dim, widening * dq_dk_tolerance(), "dk");
  expect_close(actual.dv, expected.dv, head_dim, widening * dv_tolerance(), "dv");
}

void DeviceAttentionTest::check(AttentionCase c, const std::vector<Order>& orders, double widening) {
  c.dtype = dtype();
  c.seed = uint64_t(random_integers(1, 1 << 30)[0]);
  const ReferenceResult expected = attention_reference(c.reference_input());
  for (const Order& order : orders) {
    const AttentionLayer layer = put_layer(c);
    forward(c, layer, order);
    const Floats output = get(layer.output);
    expect_close(output, expected.output, c.shape.head_dim, widening * output_tolerance(), "output");
    expect_lse(get(layer.lse), expected.lse, widening * lse_tolerance());
    for (size_t i = 0; i < output.size(); ++i) {
      ASSERT_TRUE(expected.output[i] != 0 || output[i] == 0) << "a row that saw nothing";
    }
    const Tensor lse = put_f32({expected.lse.begin(), expected.lse.end()}, layer.lse.shape);
    const Tensor delta = put_f32(delta_of(c, expected.output, c.d_output()), layer.lse.shape);
    backward(c, layer, order, lse, delta);
    expect_gradients(gradients(c, layer), expected, c.shape.head_dim, widening);
    next_case();
  }
}

}  // namespace ringlet::test
