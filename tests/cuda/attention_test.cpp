#include "tests/support/attention_reference.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "tests/cuda/device_bench.h"
#include "tests/support/compare.h"

namespace ringlet::test {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
const std::vector<std::array<int64_t, 2>> kHeads = {{2, 2}, {4, 2}, {4, 1}};  // GQA 1, 2, 4

using Order = std::vector<size_t>;

/// Key pieces from the last one down, and from the first one up.
std::vector<Order> both_ways(const AttentionCase& c) {
  Order up(c.keys.size());
  std::iota(up.begin(), up.end(), size_t{0});
  return {Order(up.rbegin(), up.rend()), up};
}

/// [heads, rows]: sum over head_dim of d_output * output.
Floats delta_of(const AttentionCase& c, const Doubles& output, const Floats& d_output) {
  const int64_t width = c.shape.q_width(), rows = int64_t(output.size()) / width, n = c.shape.head_dim;
  Floats delta;
  for (int64_t head = 0; head < c.shape.heads; ++head) {
    for (int64_t row = 0; row < rows; ++row) {
      double sum = 0;
      for (int64_t i = head * n; i < (head + 1) * n; ++i) sum += output[row * width + i] * double(d_output[row * width + i]);
      delta.push_back(float(sum));
    }
  }
  return delta;
}

/// The tensors of a case on a device, and the operations on them. dq and dkv are random at first.
struct Layer {
  Tensor q, d_output, first_visible, output, lse, dq;
  AttentionState state;
  std::vector<Tensor> kv, dkv;
  Floats dq_start;
  std::vector<Floats> dkv_start;
};

/// What the device made of a case; gradients without what they started from.
struct Gradients {
  Floats dq, dk, dv;  // dk, dv: [kv_heads, keys, head_dim]
};

Floats minus(Floats values, const Floats& start) {
  for (size_t i = 0; i < values.size(); ++i) values[i] -= start[i];
  return values;
}

class DeviceAttentionTest : public DeviceTest {
 protected:
  std::vector<int64_t> head_dims() const {
    if (!on_cuda()) return {8, 64};
    if (GetParam().attention == CudaAttention::plain) return {8, 32, 64, 128};
    return {64, 128};
  }
  double output_tolerance() const { return in_bf16() ? 5e-3 : kOutputTolerance; }
  double lse_tolerance() const { return in_bf16() ? 1e-4 : kOutputTolerance; }
  double dq_dk_tolerance() const { return in_bf16() ? 1e-2 : kGradientTolerance; }
  double dv_tolerance() const { return in_bf16() ? 5e-3 : kGradientTolerance; }

  Layer put_layer(const AttentionCase& c) {
    const int64_t rows = int64_t(positions_of(c.queries).size()), heads = c.shape.heads, n = c.shape.head_dim;
    Layer layer;
    layer.q = put(c.q(), {heads, rows, n, 1});
    layer.d_output = put(c.d_output(), {rows, c.shape.q_width(), 1, 1});
    layer.first_visible = put_positions(c.first_visible_of_rows());
    layer.state = {poisoned_f32({heads, rows, n, 1}), poisoned_f32({heads, rows, 1, 1}), poisoned_f32({heads, rows, 1, 1})};
    layer.output = poisoned({rows, c.shape.q_width(), 1, 1});
    layer.lse = poisoned_f32({heads, rows, 1, 1});
    layer.dq_start = random_floats(heads * rows * n, 0.1);
    layer.dq = put_f32(layer.dq_start, layer.q.shape);
    for (const Piece& piece : c.keys) {
      Floats both = c.k({piece});
      const Floats values = c.v({piece});
      both.insert(both.end(), values.begin(), values.end());
      layer.kv.push_back(put(both, {2, c.shape.kv_heads, piece.row_count, n}));
      layer.dkv_start.push_back(random_floats(int64_t(both.size()), 0.1));
      layer.dkv.push_back(put_f32(layer.dkv_start.back(), layer.kv.back().shape));
    }
    return layer;
  }

  void forward(const AttentionCase& c, const Layer& layer, const Order& order) {
    device().attention_start(layer.state);
    for (const size_t key : order) {
      for (const Piece& queries : c.queries) {
        device().attention_forward({c.shape, queries, c.keys[key], layer.first_visible}, layer.q, layer.kv[key],
                                   layer.state);
      }
    }
    device().attention_finish(c.shape, layer.state, layer.output, layer.lse);
  }

  void backward(const AttentionCase& c, const Layer& layer, const Order& order, const Tensor& lse, const Tensor& delta) {
    for (const size_t key : order) {
      for (const Piece& queries : c.queries) {
        device().attention_backward({c.shape, queries, c.keys[key], layer.first_visible}, layer.q, layer.kv[key],
                                    {layer.d_output, lse, delta}, layer.dq, layer.dkv[key]);
      }
    }
  }

  Gradients gradients(const AttentionCase& c, const Layer& layer) {
    Gradients result{minus(get(layer.dq), layer.dq_start), {}, {}};
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

  /// state.output / state.sum as [rows, heads * head_dim]: what finish makes of it, before it is rounded.
  Doubles normalised(const AttentionCase& c, const Layer& layer) {
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

  void expect_gradients(const Gradients& actual, const ReferenceResult& expected, int64_t head_dim, double widening) {
    expect_close(actual.dq, expected.dq, head_dim, widening * dq_dk_tolerance(), "dq");
    expect_close(actual.dk, expected.dk, head_dim, widening * dq_dk_tolerance(), "dk");
    expect_close(actual.dv, expected.dv, head_dim, widening * dv_tolerance(), "dv");
  }

  /// Forward and backward in the given orders of key pieces, each against the reference. The backward pass gets the
  /// reference's lse and delta, so that it answers for itself alone.
  void check(AttentionCase c, const std::vector<Order>& orders, double widening = 1) {
    c.dtype = dtype();
    c.seed = uint64_t(random_integers(1, 1 << 30)[0]);
    const ReferenceResult expected = attention_reference(c.reference_input());
    for (const Order& order : orders) {
      const Layer layer = put_layer(c);
      forward(c, layer, order);
      const Floats output = get(layer.output);
      expect_close(output, expected.output, c.shape.head_dim, widening * output_tolerance(), "output");
      expect_lse(get(layer.lse), expected.lse, widening * lse_tolerance());
      for (size_t i = 0; i < output.size(); ++i) {
        if (expected.output[i] == 0) ASSERT_EQ(output[i], 0.0f) << "a row that saw nothing";
      }
      const Tensor lse = put_f32({expected.lse.begin(), expected.lse.end()}, layer.lse.shape);
      const Tensor delta = put_f32(delta_of(c, expected.output, c.d_output()), layer.lse.shape);
      backward(c, layer, order, lse, delta);
      expect_gradients(gradients(c, layer), expected, c.shape.head_dim, widening);
      next_case();
    }
  }
  void check(const AttentionCase& c) { check(c, {both_ways(c)[0]}); }

  /// Calls body(heads) for all groupings of heads and all head_dims.
  template <class Body>
  void for_each_shape(const Body& body) {
    for (const int64_t head_dim : head_dims()) {
      for (const auto& [heads, kv_heads] : kHeads) {
        SCOPED_TRACE(testing::Message() << heads << '/' << kv_heads << " heads of " << head_dim);
        body(HeadShape{heads, kv_heads, head_dim});
      }
    }
  }
  /// The same for one grouping, another for each head_dim.
  template <class Body>
  void for_each_head_dim(const Body& body) {
    size_t turn = 0;
    for (const int64_t head_dim : head_dims()) {
      const auto& [heads, kv_heads] = kHeads[turn++ % kHeads.size()];
      SCOPED_TRACE(testing::Message() << heads << '/' << kv_heads << " heads of " << head_dim);
      body(HeadShape{heads, kv_heads, head_dim});
    }
  }
};
INSTANTIATE_TEST_SUITE_P(Devices, DeviceAttentionTest, testing::ValuesIn(every_attention()), setting_name);

TEST_P(DeviceAttentionTest, OnePieceOfAnyLength) {
  for_each_shape([&](const HeadShape& shape) {
    for (const int64_t length : {1, 2, 7, 63, 64, 65, 127, 128, 129, 257}) {
      SCOPED_TRACE(testing::Message() << length << " rows");
      check(one_piece(shape, length));
    }
  });
}

// Many tiles: whatever goes round in circles inside a kernel has gone round.
TEST_P(DeviceAttentionTest, ALongPieceAndALongFullBlock) {
  for_each_head_dim([&](HeadShape shape) {
    shape.heads = 2, shape.kv_heads = 1;
    check(one_piece(shape, on_cuda() ? 1000 : 300));
    check({shape, {{5000, 1, 0, 321}}, {{0, 1, 0, on_cuda() ? 901 : 200}}});
  });
}

TEST_P(DeviceAttentionTest, QueriesBeforeBehindAndAmongTheKeys) {
  for_each_head_dim([&](const HeadShape& shape) {
    const std::vector<Piece> keys = {{100, 1, 0, 200}};
    for (const Piece& queries : {Piece{0, 1, 0, 65}, {300, 1, 0, 130}, {217, 1, 0, 83}, {299, 1, 0, 1}, {100, 1, 0, 1},
                                 {60, 1, 0, 100}, {290, 1, 0, 150}}) {
      SCOPED_TRACE(testing::Message() << queries.row_count << " queries from " << queries.first_position);
      check({shape, {queries}, keys});
    }
  });
}

TEST_P(DeviceAttentionTest, DocumentsStartAnywhere) {
  for_each_head_dim([&](const HeadShape& shape) {
    AttentionCase c = one_piece(shape, 300);
    c.first_visible = [](int64_t position) {
      const std::vector<int64_t> starts = {0, 1, 17, 63, 64, 128, 129, 257, 299};
      return *std::prev(std::ranges::upper_bound(starts, position));
    };
    check(c);
    c.keys = pieces_of({64, 100, 136});
    check(c, both_ways(c));
  });
}

TEST_P(DeviceAttentionTest, SlidingWindows) {
  for_each_head_dim([&](const HeadShape& shape) {
    for (const int64_t window : {1, 2, 63, 64, 65, 100, 128, 200}) {
      SCOPED_TRACE(testing::Message() << "window " << window);
      AttentionCase c = one_piece(shape, 330);
      c.first_visible = [=](int64_t position) { return std::max<int64_t>(position - window + 1, 0); };
      check(c);
    }
  });
}

// Rows that see nothing of a piece, nothing of the first pieces, and nothing at all.
TEST_P(DeviceAttentionTest, RowsThatSeeNothing) {
  for_each_head_dim([&](const HeadShape& shape) {
    AttentionCase c{shape, {{70, 1, 0, 200}}, {{130, 1, 0, 70}, {200, 1, 0, 30}, {500, 1, 0, 64}}};
    c.first_visible = [](int64_t position) { return position < 240 ? 0 : position < 260 ? 225 : 232; };
    check(c, both_ways(c));
  });
}

/// Documents and windows over a ring of ranks: each rank's queries meet the pieces of all ranks, its own first and then
/// those that come round, or from the last one down, or up.
class DeviceRingTest : public DeviceAttentionTest {
 protected:
  void check_ranks(const HeadShape& shape, const std::vector<std::vector<Piece>>& ranks) {
    AttentionCase c{shape, {}, {}};
    c.first_visible = [](int64_t p) { return p < 70 ? 0 : std::max<int64_t>(70, p - 160); };
    std::vector<Order> pieces_of_rank;
    for (const std::vector<Piece>& rank : ranks) {
      pieces_of_rank.emplace_back();
      for (const Piece& piece : rank) {
        pieces_of_rank.back().push_back(c.keys.size());
        c.keys.push_back(piece);
      }
    }
    for (size_t rank = 0; rank < ranks.size(); ++rank) {
      SCOPED_TRACE(testing::Message() << "rank " << rank << " of " << ranks.size());
      c.queries = ranks[rank];
      Order ring;
      for (size_t hop = 0; hop < ranks.size(); ++hop) {
        const Order& visitors = pieces_of_rank[(rank + ranks.size() - hop) % ranks.size()];
        ring.insert(ring.end(), visitors.begin(), visitors.end());
      }
      std::vector<Order> orders = both_ways(c);
      orders.push_back(ring);
      check(c, orders);
    }
  }
};
INSTANTIATE_TEST_SUITE_P(Devices, DeviceRingTest, testing::ValuesIn(every_attention()), setting_name);

TEST_P(DeviceRingTest, StripedPieces) {
  for_each_head_dim([&](const HeadShape& shape) {
    for (const int64_t ring : {2, 3}) {
      std::vector<std::vector<Piece>> ranks;
      for (int64_t rank = 0; rank < ring; ++rank) {
        ranks.push_back({{rank, ring, 0, (257 - rank + ring - 1) / ring}});
      }
      check_ranks(shape, ranks);
    }
  });
}

TEST_P(DeviceRingTest, ZigzagPieces) {
  for_each_head_dim([&](const HeadShape& shape) {
    const std::vector<Piece> chunks = pieces_of({43, 43, 64, 42, 41, 130});
    std::vector<std::vector<Piece>> ranks;
    for (size_t rank = 0; rank < 3; ++rank) {
      ranks.push_back({chunks[rank], chunks[5 - rank]});
      ranks.back()[0].first_row = 0;
      ranks.back()[1].first_row = chunks[rank].row_count;
    }
    check_ranks(shape, ranks);
  });
}

// What is carried from step to step is f32: eight steps lose hardly more than one.
TEST_P(DeviceRingTest, StepsLoseNothing) {
  for_each_head_dim([&](const HeadShape& shape) {
    AttentionCase c{shape, {{512, 1, 0, 96}}, pieces_of({512})};
    c.dtype = dtype();
    const Doubles expected = attention_reference(c.reference_input()).output;
    const auto error = [&](const Order& order) {
      const Layer layer = put_layer(c);
      forward(c, layer, order);
      const double error = error_of(normalised(c, layer), expected);
      next_case();
      return error;
    };
    const double one = error({0});
    EXPECT_LE(one, output_tolerance());
    c.keys = pieces_of({64, 64, 64, 64, 64, 64, 64, 64});
    for (const Order& order : {Order{7, 6, 5, 4, 3, 2, 1, 0}, {0, 1, 2, 3, 4, 5, 6, 7}, {3, 2, 1, 0, 7, 6, 5, 4}}) {
      EXPECT_LE(error(order), 1.2 * one + 1e-5);
    }
  });
}

TEST_P(DeviceAttentionTest, LargeScores) {
  for_each_head_dim([&](const HeadShape& shape) {
    AttentionCase c = one_piece(shape, 200);
    c.scale = 10;  // of q and k each
    check(c, both_ways(c), in_bf16() ? 1 : 100);  // f32 sums of such products are off by 1e-4
    c.scale = 1e4;  // scores of 1e8: one key takes all, nothing overflows
    c.dtype = dtype();
    const Layer layer = put_layer(c);
    forward(c, layer, {0});
    const Tensor delta = poisoned_f32(layer.lse.shape);
    device().attention_delta(shape, layer.output, layer.d_output, delta);
    backward(c, layer, {0}, layer.lse, delta);
    const Gradients gradient = gradients(c, layer);
    for (const auto& values : {get(layer.output), get(layer.lse), gradient.dq, gradient.dk, gradient.dv}) {
      EXPECT_TRUE(std::ranges::all_of(values, [](float x) { return std::isfinite(x); }));
    }
    next_case();
  });
}

// With the device's own lse and delta, as in training.
TEST_P(DeviceAttentionTest, ForwardAndBackwardFitTogether) {
  for_each_shape([&](const HeadShape& shape) {
    AttentionCase c = one_piece(shape, 193);
    c.dtype = dtype();
    const ReferenceResult expected = attention_reference(c.reference_input());
    const Layer layer = put_layer(c);
    forward(c, layer, {0});
    const Tensor delta = poisoned_f32(layer.lse.shape);
    device().attention_delta(shape, layer.output, layer.d_output, delta);
    expect_close(get(delta), widened(delta_of(c, widened(get(layer.output)), c.d_output())), 1, kOutputTolerance, "delta");
    backward(c, layer, {0}, layer.lse, delta);
    expect_gradients(gradients(c, layer), expected, shape.head_dim, 1);
    next_case();
  });
}

TEST_P(DeviceAttentionTest, AStartedStateHasSeenNothing) {
  const AttentionState state{poisoned_f32({3, 65, 40, 1}), poisoned_f32({3, 65, 1, 1}), poisoned_f32({3, 65, 1, 1})};
  device().attention_start(state);
  EXPECT_EQ(get(state.output), Floats(3 * 65 * 40, 0.0f));
  EXPECT_EQ(get(state.maximum), Floats(3 * 65, -kInfinity));
  EXPECT_EQ(get(state.sum), Floats(3 * 65, 0.0f));
}

TEST_P(DeviceAttentionTest, ZeroRowsAreLegal) {
  for_each_head_dim([&](const HeadShape& shape) {
    AttentionCase c = one_piece(shape, 5);
    c.keys = {{0, 1, 0, 0}};
    check(c);
    c.queries = {{0, 1, 0, 0}};
    check(c);
    c.keys = {{0, 1, 0, 70}};
    check(c);
  });
}

TEST_P(DeviceAttentionTest, EqualCallsGiveEqualBits) {
  for_each_head_dim([&](HeadShape shape) {
    if (on_cuda()) shape = {8, 2, shape.head_dim};
    AttentionCase c = one_piece(shape, on_cuda() ? 1500 : 130);
    c.dtype = dtype();
    const Layer layer = put_layer(c);
    const Tensor delta = poisoned_f32(layer.lse.shape);
    std::vector<std::vector<std::byte>> first;
    for (int i = 0; i < (on_cuda() ? 20 : 2); ++i) {
      upload<float>(device(), layer.dq_start, layer.dq);
      upload<float>(device(), layer.dkv_start[0], layer.dkv[0]);
      forward(c, layer, {0});
      device().attention_delta(shape, layer.output, layer.d_output, delta);
      backward(c, layer, {0}, layer.lse, delta);
      const std::vector<std::vector<std::byte>> now = {bits(layer.output), bits(layer.lse), bits(layer.dq),
                                                       bits(layer.dkv[0])};
      if (i == 0) first = now;
      for (size_t part = 0; part < now.size(); ++part) ASSERT_TRUE(now[part] == first[part]) << "call " << i << ", " << part;
    }
    next_case();
  });
}

}  // namespace
}  // namespace ringlet::test
