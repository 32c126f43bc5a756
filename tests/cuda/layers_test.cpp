// Norms, rotary positions and heads, SwiGLU.
#include <algorithm>
#include <cmath>
#include <limits>

#include "tests/cuda/device_bench.h"
#include "tests/support/compare.h"
#include "tests/support/op_reference.h"

namespace ringlet::test {
namespace {

using reference::Split;
using reference::SplitInput;

constexpr float kEpsilon = 0.1f;  // large enough to be seen; and with one column little is left of dx

class DeviceNormTest : public DeviceTest {};
INSTANTIATE_TEST_SUITE_P(Devices, DeviceNormTest, testing::ValuesIn(every_device()), setting_name);

TEST_P(DeviceNormTest, ForwardAndBackwardAreTheReference) {
  // The largest have more rows than run at once: a thread takes one after the other.
  for (const int64_t rows : {0, 1, 7, 63, 64, 65, 128, 257, 9'001, 70'001}) {
    for (const int64_t width : {1, 7, 8, 64, 65, 768, 2048}) {
      if (rows > (width == 8 ? 70'001 : width == 768 && on_cuda() ? 9'001 : 1000)) continue;
      SCOPED_TRACE(testing::Message() << rows << " rows of " << width);
      const Shape shape{rows, width, 1, 1};
      const Floats x = random_activations(rows * width), weight = random_activations(width);
      const Floats dy = random_activations(rows * width), start = random_activations(rows * width);
      const Floats d_weight_start = random_floats(width);
      const Tensor input = put(x, shape), w = put(weight, {width, 1, 1, 1}), gradient = put(dy, shape);
      const Tensor y = poisoned(shape), dx = poisoned(shape), dx_sum = put(start, shape);
      const Tensor d_weight = put_f32(d_weight_start, {width, 1, 1, 1});

      device().rms_norm_forward(input, w, kEpsilon, y);
      expect_rounded(get(y), reference::rms_norm(widened(x), widened(weight), double(kEpsilon)), dtype(),
                     "y");

      auto expected =
          reference::rms_norm_backward(widened(x), widened(weight), double(kEpsilon), widened(dy));
      device().rms_norm_backward(input, w, kEpsilon, gradient, Write::set, dx, d_weight);
      expect_rounded(get(dx), expected.dx, dtype(), "dx", kGradientTolerance);
      for (int64_t i = 0; i < width; ++i) expected.d_weight[i] += double(d_weight_start[i]);
      expect_close(get(d_weight), expected.d_weight, width, kGradientTolerance, "d_weight");

      device().rms_norm_backward(input, w, kEpsilon, gradient, Write::add, dx_sum, d_weight);
      for (size_t i = 0; i < start.size(); ++i) expected.dx[i] += double(start[i]);
      expect_rounded(get(dx_sum), expected.dx, dtype(), "dx added", kGradientTolerance);
      for (int64_t i = 0; i < width; ++i) {
        expected.d_weight[i] = 2 * expected.d_weight[i] - double(d_weight_start[i]);
      }
      expect_close(get(d_weight), expected.d_weight, width, kGradientTolerance, "d_weight twice");
      next_case();
    }
  }
}

TEST_P(DeviceNormTest, EqualCallsGiveEqualBits) {
  const int64_t rows = on_cuda() ? 4099 : 65, width = 768;
  const Tensor x = put(random_activations(rows * width), {rows, width, 1, 1});
  const Tensor dy = put(random_activations(rows * width), {rows, width, 1, 1});
  const Tensor weight = put(random_activations(width), {width, 1, 1, 1}), dx = poisoned({rows, width, 1, 1});
  std::vector<std::byte> first, first_dx;
  for (int i = 0; i < (on_cuda() ? 20 : 2); ++i) {
    const Tensor d_weight = put_f32(Floats(width, 0.25f), {width, 1, 1, 1});
    device().rms_norm_backward(x, weight, kEpsilon, dy, Write::set, dx, d_weight);
    const std::vector<std::byte> now = bits(d_weight), now_dx = bits(dx);
    if (i == 0) first = now, first_dx = now_dx;
    ASSERT_TRUE(now == first && now_dx == first_dx) << "call " << i;
  }
}

class DeviceSwigluTest : public DeviceTest {};
INSTANTIATE_TEST_SUITE_P(Devices, DeviceSwigluTest, testing::ValuesIn(every_device()), setting_name);

TEST_P(DeviceSwigluTest, ForwardAndBackwardAreTheReferenceAlsoInPlace) {
  for (const int64_t rows : {0, 1, 7, 65, 257, 70'001}) {
    for (const int64_t width : {1, 7, 63, 64, 65, 768}) {
      if (rows > 1000 && width != 7) continue;
      SCOPED_TRACE(testing::Message() << rows << " rows of " << width);
      const Floats x = random_activations(rows * 2 * width, 3), dy = random_activations(rows * width);
      const Tensor gate_up = put(x, {rows, 2 * width, 1, 1}), y = poisoned({rows, width, 1, 1});
      device().swiglu_forward(gate_up, y);
      expect_rounded(get(y), reference::swiglu(widened(x), width), dtype(), "y");
      const Doubles expected = reference::swiglu_backward(widened(x), widened(dy), width);
      const Tensor gradient = put(dy, {rows, width, 1, 1});
      for (const Tensor& d_gate_up : {poisoned(gate_up.shape), gate_up}) {
        device().swiglu_backward(gate_up, gradient, d_gate_up);
        expect_rounded(get(d_gate_up), expected, dtype(), "d_gate_up", kGradientTolerance);
      }
      next_case();
    }
  }
}

TEST_P(DeviceSwigluTest, ExtremesSaturateAndNanStays) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const Tensor gate_up = put({-9984, -89, 9984, nan, 1, 1, 1, 1}, {1, 8, 1, 1});
  const Tensor y = poisoned({1, 4, 1, 1}), d_gate_up = poisoned({1, 8, 1, 1});
  device().swiglu_forward(gate_up, y);
  device().swiglu_backward(gate_up, put({1, 1, 1, 1}, {1, 4, 1, 1}), d_gate_up);
  const Floats values = get(y), gradient = get(d_gate_up);
  EXPECT_LE(std::abs(values[0]), 1e-30f);
  EXPECT_LE(std::abs(values[1]), 1e-30f);
  EXPECT_EQ(values[2], 9984.0f);
  EXPECT_TRUE(std::isnan(values[3]));
  EXPECT_LE(std::abs(gradient[0]), 1e-30f);
  EXPECT_EQ(gradient[2], 1.0f);
  EXPECT_TRUE(std::isnan(gradient[3]));
}

/// None, one whole piece, zigzag, striped with a row of its own far away, more rows than run at once, more than a
/// grid's second dimension has.
const std::vector<std::vector<Piece>> kPieces = {
    {},
    {{0, 1, 0, 1}},
    {{4, 1, 0, 5}, {40, 1, 5, 7}},
    {{3, 4, 0, 13}, {1'000'000, 1, 13, 1}},
    {{0, 1, 0, 65}, {500, 1, 65, 64}},
    {{0, 1, 0, 9'001}},
    {{0, 1, 0, 70'001}},
};

int64_t rows_of(const std::vector<Piece>& pieces) {
  return pieces.empty() ? 0 : pieces.back().first_row + pieces.back().row_count;
}

class DeviceQkvSplitTest : public DeviceTest {
 protected:
  /// Calls body(input) for heads, pieces and norms of all kinds.
  template <class Body>
  void for_each_input(const Body& body) {
    for (const HeadShape& shape : {HeadShape{1, 1, 8}, {4, 2, 24}, {6, 1, 64}, {2, 2, 72}, {4, 1, 128}}) {
      for (const auto& pieces : kPieces) {
        const int64_t most_rows = shape.head_dim == 8 ? 70'001 : shape.head_dim == 128 ? 9'001 : 1000;
        if (rows_of(pieces) > (on_cuda() ? most_rows : 1000)) continue;
        for (const bool normed : {false, true}) {
          SplitInput input{shape, pieces, reference::rotary_table(pieces, 10'000, shape.head_dim),
                           {},    {},     1e-2};
          if (normed) {
            input.q_norm = widened(random_activations(shape.head_dim));
            input.k_norm = widened(random_activations(shape.head_dim));
          }
          SCOPED_TRACE(testing::Message()
                       << shape.heads << '/' << shape.kv_heads << " heads of " << shape.head_dim << ", "
                       << rows_of(pieces) << " rows, norm " << normed);
          body(input);
          next_case();
        }
      }
    }
  }
  Floats narrowed(const Doubles& values) { return {values.begin(), values.end()}; }
  QkvSplit put_split(const SplitInput& input) {
    const int64_t head_dim = input.shape.head_dim, rows = rows_of(input.pieces);
    QkvSplit split{input.shape, input.pieces, put_f32(narrowed(input.rotary), {rows, head_dim, 1, 1}),
                   {},          {},           float(input.epsilon)};
    if (input.q_norm.empty()) return split;
    split.q_norm = put(narrowed(input.q_norm), {head_dim, 1, 1, 1});
    split.k_norm = put(narrowed(input.k_norm), {head_dim, 1, 1, 1});
    return split;
  }
};
INSTANTIATE_TEST_SUITE_P(Devices, DeviceQkvSplitTest, testing::ValuesIn(every_device()), setting_name);

TEST_P(DeviceQkvSplitTest, ForwardIsTheReference) {
  for_each_input([&](const SplitInput& input) {
    const HeadShape& shape = input.shape;
    const int64_t rows = rows_of(input.pieces);
    const Floats values = random_activations(rows * shape.qkv_width());
    const Tensor q = poisoned({shape.heads, rows, shape.head_dim, 1});
    const Tensor kv = poisoned({2 * shape.kv_heads * rows * shape.head_dim, 1, 1, 1});
    device().qkv_split_forward(put_split(input), put(values, {rows, shape.qkv_width(), 1, 1}), q, kv);
    const Split expected = reference::qkv_split(input, widened(values));
    expect_rounded(get(q), expected.q, dtype(), "q");
    expect_rounded(get(kv), expected.kv, dtype(), "kv");
  });
}

TEST_P(DeviceQkvSplitTest, BackwardIsTheReferenceAlsoInPlace) {
  for_each_input([&](const SplitInput& input) {
    const HeadShape& shape = input.shape;
    const int64_t rows = rows_of(input.pieces), head_dim = shape.head_dim;
    const bool normed = !input.q_norm.empty();
    const Floats values = random_activations(rows * shape.qkv_width());
    const Floats dq = random_floats(rows * shape.q_width()),
                 dkv = random_floats(2 * rows * shape.kv_heads * head_dim);
    const Floats start = random_floats(head_dim);
    auto expected = reference::qkv_split_backward(input, widened(values), {widened(dq), widened(dkv)});
    for (size_t i = 0; i < expected.d_q_norm.size(); ++i) {
      expected.d_q_norm[i] += double(start[i]);
      expected.d_k_norm[i] += double(start[i]);
    }
    const QkvSplit split = put_split(input);
    const Tensor dq_in = put_f32(dq, {shape.heads, rows, head_dim, 1});
    const Tensor dkv_in = put_f32(dkv, {int64_t(dkv.size()), 1, 1, 1});
    const Tensor qkv = put(values, {rows, shape.qkv_width(), 1, 1});
    for (const Tensor& d_qkv : {poisoned(qkv.shape), qkv}) {
      const Tensor d_q_norm = normed ? put_f32(start, {head_dim, 1, 1, 1}) : Tensor{};
      const Tensor d_k_norm = normed ? put_f32(start, {head_dim, 1, 1, 1}) : Tensor{};
      device().qkv_split_backward(split, normed ? qkv : Tensor{}, dq_in, dkv_in, d_qkv, d_q_norm, d_k_norm);
      expect_rounded(get(d_qkv), expected.d_qkv, dtype(), "d_qkv", kGradientTolerance);
      if (!normed) continue;
      expect_close(get(d_q_norm), expected.d_q_norm, head_dim, kGradientTolerance, "d_q_norm");
      expect_close(get(d_k_norm), expected.d_k_norm, head_dim, kGradientTolerance, "d_k_norm");
    }
  });
}

// A float angle is off by hundredths of a radian out there.
TEST_P(DeviceQkvSplitTest, RotaryTableIsRightAtPositionOneMillionAndBeyond) {
  const std::vector<Piece> pieces = {{1'000'000, 1, 0, 3}, {999'999'937, 7, 3, 2}, {0, 1, 5, 1}};
  for (const double base : {10'000.0, 5e6}) {
    for (const int64_t head_dim : {8, 64, 128}) {
      const Tensor table = poisoned_f32({6, head_dim, 1, 1});
      device().rotary_table(pieces, base, table);
      const Floats actual = get(table);
      const Doubles expected = reference::rotary_table(pieces, base, head_dim);
      for (size_t i = 0; i < actual.size(); ++i) {
        ASSERT_LE(std::abs(double(actual[i]) - expected[i]), 1.5e-7) << i;
      }
      next_case();
    }
  }
}

}  // namespace
}  // namespace ringlet::test
