#include <algorithm>
#include <cmath>
#include <limits>

#include "tests/cuda/attention_bench.h"

namespace ringlet::test {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

INSTANTIATE_TEST_SUITE_P(Devices, DeviceAttentionTest, testing::ValuesIn(every_attention()), setting_name);

// For tools that look at every access and take a thousand times as long.
TEST_P(DeviceAttentionTest, ATinyPiece) {
  for_each_head_dim([&](const HeadShape& shape) { check(one_piece({2, 1, shape.head_dim}, 40)); });
}

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
    for (const Piece& queries : {Piece{0, 1, 0, 65},
                                 {300, 1, 0, 130},
                                 {217, 1, 0, 83},
                                 {299, 1, 0, 1},
                                 {100, 1, 0, 1},
                                 {60, 1, 0, 100},
                                 {290, 1, 0, 150}}) {
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

TEST_P(DeviceAttentionTest, LargeScores) {
  for_each_head_dim([&](const HeadShape& shape) {
    AttentionCase c = one_piece(shape, 200);
    c.scale = 10;                                 // of q and k each
    check(c, both_ways(c), in_bf16() ? 1 : 100);  // f32 sums of such products are off by 1e-4
    c.scale = 1e4;                                // scores of 1e8: one key takes all, nothing overflows
    c.dtype = dtype();
    const AttentionLayer layer = put_layer(c);
    forward(c, layer, {0});
    for (const Floats& values : {get(layer.output), get(layer.lse)}) {
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
    const AttentionLayer layer = put_layer(c);
    forward(c, layer, {0});
    const Tensor delta = poisoned_f32(layer.lse.shape);
    device().attention_delta(shape, layer.output, layer.d_output, delta);
    expect_close(get(delta), widened(delta_of(c, widened(get(layer.output)), c.d_output())), 1,
                 kOutputTolerance, "delta");
    backward(c, layer, {0}, layer.lse, delta);
    expect_gradients(gradients(c, layer), expected, shape.head_dim);
    next_case();
  });
}

TEST_P(DeviceAttentionTest, AStartedStateHasSeenNothing) {
  const AttentionState state{poisoned_f32({3, 65, 40, 1}), poisoned_f32({3, 65, 1, 1}),
                             poisoned_f32({3, 65, 1, 1})};
  device().attention_start(state);
  EXPECT_EQ(get(state.output), Floats(3 * 65 * 40, 0.0f));
  EXPECT_EQ(get(state.maximum), Floats(3 * 65, -kInfinity));
  EXPECT_EQ(get(state.sum), Floats(3 * 65, 0.0f));
}

// More rows than the second dimension of a grid has.
TEST_P(DeviceAttentionTest, FinishAndDeltaOfManyRows) {
  const HeadShape shape{2, 1, 8};
  const int64_t rows = 70'001, width = shape.q_width();
  const AttentionCase c{shape, {{0, 1, 0, rows}}, {}};
  const Floats sums = random_floats(2 * rows * 8), d_output = random_activations(rows * width);
  const AttentionState state{put_f32(sums, {2, rows, 8, 1}), put_f32(Floats(2 * rows, 3.0f), {2, rows, 1, 1}),
                             put_f32(Floats(2 * rows, 2.0f), {2, rows, 1, 1})};
  const Tensor output = poisoned({rows, width, 1, 1}), lse = poisoned_f32({2, rows, 1, 1});
  device().attention_finish(shape, state, output, lse);
  Doubles expected(sums.size());
  for (int64_t i = 0; i < int64_t(sums.size()); ++i) {
    const int64_t head = i / (rows * 8), row = i / 8 % rows;
    expected[row * width + head * 8 + i % 8] = double(sums[i]) / 2;
  }
  expect_rounded(get(output), expected, dtype(), "output");
  expect_lse(get(lse), Doubles(2 * rows, 3 * std::log(2.0) + std::log(2.0)), kOutputTolerance);
  const Tensor delta = poisoned_f32(lse.shape);
  device().attention_delta(shape, output, put(d_output, output.shape), delta);
  expect_close(get(delta), widened(delta_of(c, widened(get(output)), d_output)), 1, kOutputTolerance,
               "delta");
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
    const AttentionLayer layer = put_layer(c);
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
      for (size_t part = 0; part < now.size(); ++part)
        ASSERT_TRUE(now[part] == first[part]) << "call " << i << ", " << part;
    }
    next_case();
  });
}

}  // namespace
}  // namespace ringlet::test
