#include "kernels/cpu/bf16_storage.h"

#include <gtest/gtest.h>

#include <bit>
#include <utility>

#include "tests/support/host_tensor.h"

namespace ringlet::test {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

/// One operand of two calls: of the one in bf16, and of the one in f32 on the same values. What is f32 beside
/// bf16 too is f32 in both.
struct Twin {
  Tensor narrow, wide;
  Twin columns(int64_t first, int64_t count) const {
    return {narrow.columns(first, count), wide.columns(first, count)};
  }
};
using Side = Tensor Twin::*;
constexpr Side kSides[] = {&Twin::narrow, &Twin::wide};

std::vector<Bf16> rounded(const std::vector<float>& values) {
  std::vector<Bf16> result;
  for (const float value : values) result.push_back(to_bf16(value));
  return result;
}

std::vector<float> widened(const std::vector<Bf16>& values) {
  std::vector<float> result;
  for (const Bf16 value : values) result.push_back(to_float(value));
  return result;
}

std::vector<uint32_t> bits_of(const std::vector<float>& values) {
  std::vector<uint32_t> result;
  for (const float value : values) result.push_back(std::bit_cast<uint32_t>(value));
  return result;
}

/// Every operation in bf16 against the same operation in f32 on widened inputs, rounded: equal bits.
class Bf16StorageTest : public testing::Test {
 protected:
  /// The values, rounded, as bf16 and widened again.
  Twin put(const std::vector<float>& values, Shape shape) {
    const std::vector<Bf16> narrow = rounded(values);
    return {bench.put(narrow, shape), bench.put(widened(narrow), shape)};
  }
  Twin random(Shape shape, double scale = 1) {
    return put(random_values(size_of(shape), ++seed_, scale), shape);
  }
  Twin poisoned(Shape shape) { return put(std::vector<float>(size_of(shape), kNan), shape); }
  /// f32 twice: a sum or a statistic.
  Twin floats(const std::vector<float>& values, Shape shape) {
    return {bench.put(values, shape), bench.put(values, shape)};
  }
  Twin random_floats(Shape shape) { return floats(random_values(size_of(shape), ++seed_), shape); }
  Twin poisoned_floats(Shape shape) { return {bench.poisoned(shape), bench.poisoned(shape)}; }

  void expect_same(const Twin& twin, const char* name) {
    if (twin.narrow.dtype == Dtype::f32) {
      EXPECT_TRUE(bits_of(bench.get(twin.narrow)) == bits_of(bench.get(twin.wide))) << name;
    } else {
      EXPECT_TRUE(bench.get<Bf16>(twin.narrow) == rounded(bench.get(twin.wide))) << name;
    }
  }
  /// The same, and nothing of the poison is left.
  void expect_set(const Twin& twin, const char* name) {
    expect_same(twin, name);
    for (const float value : bench.get(twin.wide)) EXPECT_FALSE(std::isnan(value)) << name;
  }

  static int64_t size_of(const Shape& shape) { return shape[0] * shape[1] * shape[2] * shape[3]; }

  Bench bench;
  Backend& device = *bench.device;

 private:
  uint64_t seed_ = 0;
};

TEST_F(Bf16StorageTest, FillCopyAndCopyRowsTouchExactlyTheirTensor) {
  for (const int64_t size : {0, 1, 7, 64, 65, 1009}) {
    const Twin all = random({3, size, 1, 1}), from = random({1, size, 1, 1});
    for (const Side side : kSides) device.fill(0x1.03p0f, (all.*side).slice(1, 1));
    expect_same(all, "fill");
    for (const Side side : kSides) device.copy(from.*side, (all.*side).slice(1, 1));
    expect_same(all, "copy");
    const Twin rows = random({3, 2, size, 1}), cache = random({3, 5, size, 1});
    for (const Side side : kSides) device.copy_rows(rows.*side, 3, cache.*side);
    expect_same(cache, "copy_rows");
  }
  const Tensor one = poisoned({1, 1, 1, 1}).narrow;
  device.fill(0x1.03p0f, one);
  EXPECT_EQ(bench.get<Bf16>(one)[0], to_bf16(0x1.04p0f));
}

TEST_F(Bf16StorageTest, MatmulOfAnyTransposeStrideAndOutput) {
  const auto turned = [](int64_t rows, int64_t columns, Transpose transpose) {
    return transpose == Transpose::yes ? Shape{columns, rows + 3, 1, 1} : Shape{rows, columns + 3, 1, 1};
  };
  for (const auto& [m, n, k] : std::vector<std::array<int64_t, 3>>{
           {65, 131, 300}, {1, 1, 1}, {0, 5, 3}, {5, 0, 3}, {7, 13, 0}, {3, 17, 29}, {64, 64, 64}}) {
    for (const Transpose transpose_a : {Transpose::no, Transpose::yes}) {
      for (const Transpose transpose_b : {Transpose::no, Transpose::yes}) {
        for (const Write write : {Write::set, Write::add}) {
          SCOPED_TRACE(testing::Message() << m << ' ' << n << ' ' << k << ' ' << int(transpose_a)
                                          << int(transpose_b) << int(write));
          const ArenaScope scope(device.arena());
          const Shape shape_a = turned(m, k, transpose_a), shape_b = turned(k, n, transpose_b);
          const Twin a = random(shape_a).columns(2, shape_a[1] - 3),
                     b = random(shape_b).columns(1, shape_b[1] - 3);
          const Twin whole = random({m, n + 5, 1, 1}), out = whole.columns(3, n);
          const Twin whole_sum = random_floats({m, n + 5, 1, 1}), sum = whole_sum.columns(3, n);
          if (write == Write::set) {
            const Twin poison = poisoned({m, n, 1, 1});
            for (const Side side : kSides) {
              device.matmul(a.*side, transpose_a, b.*side, transpose_b, write, poison.*side);
            }
            expect_set(poison, "contiguous");
          }
          for (const Side side : kSides) {
            device.matmul(a.*side, transpose_a, b.*side, transpose_b, write, out.*side);
            device.matmul(a.*side, transpose_a, b.*side, transpose_b, write, sum.*side);
          }
          expect_same(whole, "bf16 output");
          expect_same(whole_sum, "f32 output");
        }
      }
    }
  }
}

// 1 + (2^-8 + 2^-20): the product alone would round to 2^-8, and the sum then to 1.
TEST_F(Bf16StorageTest, MatmulAddsBeforeItRounds) {
  const Tensor a = put({1, 0x1p-10f}, {1, 2, 1, 1}).narrow, b = put({0x1p-8f, 0x1p-10f}, {2, 1, 1, 1}).narrow;
  const Tensor out = put({1}, {1, 1, 1, 1}).narrow;
  device.matmul(a, Transpose::no, b, Transpose::no, Write::add, out);
  EXPECT_EQ(bench.get<Bf16>(out)[0], to_bf16(0x1.02p0f));
}

TEST_F(Bf16StorageTest, RmsNorm) {
  for (const int64_t rows : {65, 0, 1, 7}) {
    for (const int64_t width : {131, 1, 64}) {
      SCOPED_TRACE(testing::Message() << rows << ' ' << width);
      const Shape shape{rows, width, 1, 1}, line{width, 1, 1, 1};
      const Twin x = random(shape), weight = random(line), dy = random(shape), y = poisoned(shape);
      for (const Side side : kSides) device.rms_norm_forward(x.*side, weight.*side, 1e-5f, y.*side);
      expect_set(y, "y");
      for (const Write write : {Write::set, Write::add}) {
        const Twin dx = write == Write::set ? poisoned(shape) : random(shape), d_weight = random_floats(line);
        for (const Side side : kSides) {
          device.rms_norm_backward(x.*side, weight.*side, 1e-5f, dy.*side, write, dx.*side, d_weight.*side);
        }
        expect_set(dx, "dx");
        expect_set(d_weight, "d_weight");
      }
    }
  }
}

TEST_F(Bf16StorageTest, QkvSplitAlsoInPlace) {
  for (const int64_t length : {9, 0, 1}) {
    for (const bool normed : {true, false}) {
      SCOPED_TRACE(testing::Message() << length << ' ' << normed);
      const HeadShape shape{4, 2, 24};
      const std::vector<Piece> pieces = {{3, 2, 0, length}, {40, 2, length, 4}};
      const int64_t rows = length + 4, kv_size = 2 * shape.kv_heads * rows * shape.head_dim;
      const Shape qkv_shape{rows, shape.qkv_width(), 1, 1}, norm{shape.head_dim, 1, 1, 1};
      const Tensor rotary = bench.poisoned({rows, shape.head_dim, 1, 1});
      device.rotary_table(pieces, 10000, rotary);
      const Twin q_norm = random(norm), k_norm = random(norm), qkv = random(qkv_shape);
      const auto split = [&](Side side) {
        return QkvSplit{shape, pieces, rotary, normed ? q_norm.*side : Tensor{},
                        normed ? k_norm.*side : Tensor{}};
      };
      const Twin q = poisoned({shape.heads, rows, shape.head_dim, 1}), kv = poisoned({kv_size, 1, 1, 1});
      for (const Side side : kSides) device.qkv_split_forward(split(side), qkv.*side, q.*side, kv.*side);
      expect_set(q, "q");
      expect_set(kv, "kv");

      const Twin dq = random_floats(q.wide.shape), dkv = random_floats(kv.wide.shape);
      const Twin d_q_norm = random_floats(norm), d_k_norm = random_floats(norm);
      const Twin absent;
      for (const Twin& d_qkv : {poisoned(qkv_shape), qkv}) {
        for (const Side side : kSides) {
          device.qkv_split_backward(split(side), (normed ? qkv : absent).*side, dq.*side, dkv.*side,
                                    d_qkv.*side, d_q_norm.*side, d_k_norm.*side);
        }
        expect_set(d_qkv, "d_qkv");
        expect_set(d_q_norm, "d_q_norm");
        expect_set(d_k_norm, "d_k_norm");
      }
    }
  }
}

// Two pieces of queries meet two of keys, one of which most queries do not see.
TEST_F(Bf16StorageTest, Attention) {
  for (const HeadShape& shape : {HeadShape{4, 2, 40}, HeadShape{2, 1, 8}}) {
    const std::vector<Piece> queries = {{70, 1, 0, 67}, {200, 1, 67, 30}},
                             keys = {{0, 1, 0, 131}, {190, 1, 0, 33}};
    const int64_t rows = 97;
    const Shape q_shape{shape.heads, rows, shape.head_dim, 1}, per_row{shape.heads, rows, 1, 1};
    const Shape output_shape{rows, shape.q_width(), 1, 1};
    const Tensor first_visible = bench.put(std::vector<int64_t>(rows, 5), {rows, 1, 1, 1});
    const Twin q = random(q_shape), output = poisoned(output_shape), lse = poisoned_floats(per_row);
    const Twin state = poisoned_floats(q_shape), maximum = poisoned_floats(per_row),
               sum = poisoned_floats(per_row);
    std::vector<Twin> kv, dkv;
    for (const Piece& piece : keys) {
      kv.push_back(random({2, shape.kv_heads, piece.row_count, shape.head_dim}));
      dkv.push_back(random_floats(kv.back().wide.shape));
    }
    for (const Side side : kSides) {
      const AttentionState states{state.*side, maximum.*side, sum.*side};
      device.attention_start(states);
      for (const size_t key : {1, 0}) {
        for (const Piece& piece : queries) {
          device.attention_forward({shape, piece, keys[key], first_visible}, q.*side, kv[key].*side, states);
        }
      }
      device.attention_finish(shape, states, output.*side, lse.*side);
    }
    expect_set(state, "state.output");
    expect_set(maximum, "state.maximum");
    expect_set(sum, "state.sum");
    expect_set(output, "output");
    expect_set(lse, "lse");

    // An output that both know in bf16: the one above is rounded in one of them only.
    const Twin known = random(output_shape), d_output = random(output_shape),
               delta = poisoned_floats(per_row);
    const Twin dq = random_floats(q_shape);
    for (const Side side : kSides) {
      device.attention_delta(shape, known.*side, d_output.*side, delta.*side);
      for (const size_t key : {1, 0}) {
        Write write = key == 1 ? Write::set : Write::add;
        for (const Piece& piece : queries) {
          device.attention_backward({shape, piece, keys[key], first_visible}, q.*side, kv[key].*side,
                                    {d_output.*side, lse.*side, delta.*side}, dq.*side,
                                    std::exchange(write, Write::add), dkv[key].*side);
        }
      }
    }
    expect_set(delta, "delta");
    expect_set(dq, "dq");
    for (const Twin& part : dkv) expect_set(part, "dkv");
  }
}

TEST_F(Bf16StorageTest, AttentionOfNoKeysAndNoQueries) {
  const HeadShape shape{2, 1, 8};
  for (const auto& [rows, key_rows] : {std::pair(3, 0), std::pair(0, 3)}) {
    const Tensor first_visible = bench.put(std::vector<int64_t>(rows), {rows, 1, 1, 1});
    const AttentionStep step{shape, {0, 1, 0, rows}, {0, 1, 0, key_rows}, first_visible};
    const Tensor q = random({2, rows, 8, 1}).narrow, kv = random({2, 1, key_rows, 8}).narrow;
    const Tensor output = poisoned({rows, 16, 1, 1}).narrow, lse = bench.poisoned({2, rows, 1, 1});
    const AttentionState state{bench.poisoned({2, rows, 8, 1}), bench.poisoned(lse.shape),
                               bench.poisoned(lse.shape)};
    device.attention_start(state);
    device.attention_forward(step, q, kv, state);
    device.attention_finish(shape, state, output, lse);
    EXPECT_TRUE(bench.get<Bf16>(output) == std::vector<Bf16>(size_t(output.size())));
  }
}

TEST_F(Bf16StorageTest, SwigluAlsoInPlace) {
  for (const int64_t rows : {65, 0, 1, 7}) {
    for (const int64_t width : {131, 1, 64}) {
      SCOPED_TRACE(testing::Message() << rows << ' ' << width);
      const Twin gate_up = random({rows, 2 * width, 1, 1}, 3), dy = random({rows, width, 1, 1});
      const Twin y = poisoned({rows, width, 1, 1});
      for (const Side side : kSides) device.swiglu_forward(gate_up.*side, y.*side);
      expect_set(y, "y");
      for (const Twin& d_gate_up : {poisoned(gate_up.wide.shape), gate_up}) {
        for (const Side side : kSides) device.swiglu_backward(gate_up.*side, dy.*side, d_gate_up.*side);
        expect_set(d_gate_up, "d_gate_up");
      }
    }
  }
}

TEST_F(Bf16StorageTest, Embedding) {
  for (const int64_t width : {131, 1, 64}) {
    const Tensor tokens = bench.put<int32_t>({4, 0, 4, 2, 4}, {5, 1, 1, 1});
    const Twin table = random({7, width, 1, 1}), y = poisoned({5, width, 1, 1});
    const Twin dy = random({5, width, 1, 1}), d_table = random_floats({7, width, 1, 1});
    for (const Side side : kSides) {
      device.embedding_forward(tokens, table.*side, y.*side);
      device.embedding_backward(tokens, dy.*side, d_table.*side);
    }
    expect_set(y, "y");
    expect_set(d_table, "d_table");
  }
}

TEST_F(Bf16StorageTest, CrossEntropy) {
  for (const int64_t vocabulary : {257, 2, 64}) {
    const Tensor labels = bench.put<int32_t>({1, -1, 0, int32_t(vocabulary - 1)}, {4, 1, 1, 1});
    for (const CrossEntropy mode : {CrossEntropy::loss_only, CrossEntropy::loss_and_gradient}) {
      const Twin logits = random({4, vocabulary, 1, 1}, 4), losses = poisoned_floats({4, 1, 1, 1});
      for (const Side side : kSides) device.cross_entropy(logits.*side, labels, mode, 0.37f, losses.*side);
      expect_set(losses, "losses");
      if (mode == CrossEntropy::loss_and_gradient) expect_set(logits, "gradient");
    }
  }
}

TEST_F(Bf16StorageTest, AdamwRoundsTheNewWeights) {
  const AdamW settings{1e-2f, 0.9f, 0.95f, 1e-8f, 0.1f, 0.5f, 3};
  for (const int64_t size : {1009, 0, 1, 64}) {
    const Shape shape{size, 1, 1, 1};
    const Twin gradient = random_floats(shape), weights = random_floats(shape), first = random_floats(shape);
    const Twin second = floats(std::vector<float>(size_t(size), 0.25f), shape);
    const Tensor rounded_weights = poisoned({1, size, 1, 1}).narrow;
    device.adamw(settings, gradient.narrow, weights.narrow, first.narrow, second.narrow, rounded_weights);
    device.adamw(settings, gradient.wide, weights.wide, first.wide, second.wide, {});
    for (const Twin& twin : {weights, first, second}) expect_set(twin, "state");
    EXPECT_TRUE(bench.get<Bf16>(rounded_weights) == rounded(bench.get(weights.wide)));
  }
}

TEST_F(Bf16StorageTest, MixedDtypesThrow) {
  const Twin x = random({8, 8, 1, 1}), line = random({8, 1, 1, 1}), wide = random({8, 16, 1, 1});
  const Tensor tokens = bench.put<int32_t>(std::vector<int32_t>(8), {8, 1, 1, 1});
  const Tensor doubles = bench.put(std::vector<double>(64), {8, 8, 1, 1});
  constexpr Transpose kNo = Transpose::no;
  for (const auto& [one, other] :
       {std::pair(&Twin::narrow, &Twin::wide), std::pair(&Twin::wide, &Twin::narrow)}) {
    EXPECT_THROW(device.copy(x.*one, x.*other), Error);
    EXPECT_THROW(device.copy_rows(x.*one, 0, x.*other), Error);
    EXPECT_THROW(device.matmul(x.*one, kNo, x.*other, kNo, Write::set, x.wide), Error);
    EXPECT_THROW(device.matmul(x.*one, kNo, x.*one, kNo, Write::set, doubles), Error);
    EXPECT_THROW(device.rms_norm_forward(x.*one, line.*other, 0, x.*one), Error);
    EXPECT_THROW(device.rms_norm_forward(x.*one, line.*one, 0, x.*other), Error);
    EXPECT_THROW(device.rms_norm_backward(x.*one, line.*one, 0, x.*other, Write::set, x.*one, line.wide),
                 Error);
    EXPECT_THROW(device.rms_norm_backward(x.*one, line.*one, 0, x.*one, Write::set, x.*other, line.wide),
                 Error);
    EXPECT_THROW(device.swiglu_forward(wide.*one, x.*other), Error);
    EXPECT_THROW(device.swiglu_backward(wide.*one, x.*one, wide.*other), Error);
    EXPECT_THROW(device.swiglu_backward(wide.*one, x.*other, wide.*one), Error);
    EXPECT_THROW(device.embedding_forward(tokens, x.*one, x.*other), Error);
    EXPECT_THROW(device.attention_delta({1, 1, 8}, x.*one, x.*other, bench.poisoned({1, 8, 1, 1})), Error);
  }
  EXPECT_THROW(device.matmul(x.wide, kNo, x.wide, kNo, Write::set, x.narrow), Error);
  EXPECT_THROW(
      device.rms_norm_backward(x.narrow, line.narrow, 0, x.narrow, Write::set, x.narrow, line.narrow), Error);
  EXPECT_THROW(device.embedding_backward(tokens, x.narrow, x.narrow), Error);
  EXPECT_THROW(device.cross_entropy(x.narrow, tokens, CrossEntropy::loss_only, 1, line.narrow), Error);
  EXPECT_THROW(device.cross_entropy(doubles, tokens, CrossEntropy::loss_only, 1, line.wide), Error);
  EXPECT_THROW(device.add(x.narrow, x.narrow), Error);
  EXPECT_THROW(device.fill(0, doubles), Error);
  const AdamW settings{1e-2f, 0.9f, 0.95f, 1e-8f, 0.1f, 1, 1};
  EXPECT_THROW(device.adamw(settings, x.wide, x.wide, x.wide, x.wide, x.wide), Error);
  EXPECT_THROW(device.adamw(settings, x.wide, x.narrow, x.wide, x.wide, x.narrow), Error);
}

TEST_F(Bf16StorageTest, MixedDtypesOfHeadsThrow) {
  const HeadShape shape{1, 1, 8};
  const std::vector<Piece> pieces = {{0, 1, 0, 8}};
  const Tensor rotary = bench.poisoned({8, 8, 1, 1}),
               first_visible = bench.put(std::vector<int64_t>(8), {8, 1, 1, 1});
  const Twin qkv = random({8, 24, 1, 1}), q = random({1, 8, 8, 1}), kv = random({2, 1, 8, 8}),
             norm = random({8, 1, 1, 1});
  const Twin output = random({8, 8, 1, 1});
  const Tensor lse = bench.poisoned({1, 8, 1, 1});
  const AttentionStep step{shape, pieces[0], pieces[0], first_visible};
  const AttentionState state{q.wide, lse, lse};
  for (const auto& [one, other] :
       {std::pair(&Twin::narrow, &Twin::wide), std::pair(&Twin::wide, &Twin::narrow)}) {
    const QkvSplit plain{shape, pieces, rotary, {}, {}},
        normed{shape, pieces, rotary, norm.*one, norm.*other};
    EXPECT_THROW(device.qkv_split_forward(plain, qkv.*one, q.*other, kv.*one), Error);
    EXPECT_THROW(device.qkv_split_forward(plain, qkv.*one, q.*one, kv.*other), Error);
    EXPECT_THROW(device.qkv_split_forward(normed, qkv.*one, q.*one, kv.*one), Error);
    EXPECT_THROW(device.qkv_split_backward(normed, qkv.*one, q.wide, kv.wide, qkv.*one, norm.wide, norm.wide),
                 Error);
    EXPECT_THROW(device.qkv_split_backward(plain, {}, q.narrow, kv.wide, qkv.*one, {}, {}), Error);
    EXPECT_THROW(device.attention_forward(step, q.*one, kv.*other, state), Error);
    EXPECT_THROW(device.attention_backward(step, q.*one, kv.*one, {output.*other, lse, lse}, q.wide, Write::add, kv.wide),
                 Error);
    EXPECT_THROW(device.attention_backward(step, q.*one, kv.*one, {output.*one, lse, lse}, q.narrow, Write::add, kv.wide),
                 Error);
    EXPECT_THROW(device.attention_finish(shape, {q.narrow, lse, lse}, output.*one, lse), Error);
  }
}

TEST_F(Bf16StorageTest, BitsDoNotDependOnThreads) {
  const Twin a = random({65, 300, 1, 1}), b = random({300, 131, 1, 1});
  const Tensor out = poisoned({65, 131, 1, 1}).narrow;
  device.matmul(a.narrow, Transpose::no, b.narrow, Transpose::no, Write::set, out);
  Bench three(int64_t{1} << 24, /*threads=*/3);
  const Tensor same = three.device->arena().allocate("test", Dtype::bf16, out.shape);
  three.device->matmul(a.narrow, Transpose::no, b.narrow, Transpose::no, Write::set, same);
  EXPECT_TRUE(bench.get<Bf16>(out) == three.get<Bf16>(same));
}

}  // namespace
}  // namespace ringlet::test
