// In the contiguous layout every bit of attention, and every loss of the model, is the same on any ring.
#include <gtest/gtest.h>

#include <bit>

#include "kernels/comm/dry.h"
#include "kernels/dry/dry_backend.h"
#include "model/ring_attention.h"
#include "tests/support/ring_attention_case.h"
#include "train/verify/verify_problem.h"

namespace ringlet::test {
namespace {

constexpr std::array kRingSizes{2, 3, 4, 5, 8};

/// 0 and -0 differ, a NaN equals itself.
std::vector<uint32_t> bits_of(const std::vector<float>& values) {
  std::vector<uint32_t> bits;
  for (const float value : values) bits.push_back(std::bit_cast<uint32_t>(value));
  return bits;
}

void expect_same_bits(const RingAttentionValues<float>& actual, const RingAttentionValues<float>& expected) {
  EXPECT_EQ(bits_of(actual.output), bits_of(expected.output));
  EXPECT_EQ(bits_of(actual.lse), bits_of(expected.lse));
  EXPECT_EQ(bits_of(actual.dq), bits_of(expected.dq));
  EXPECT_EQ(bits_of(actual.dk), bits_of(expected.dk));
  EXPECT_EQ(bits_of(actual.dv), bits_of(expected.dv));
}

/// Those of every test, and masks under which only some blocks travel, and not all the way.
std::vector<Mask> masks_with_skipped_traffic(int64_t length) {
  std::vector<Mask> masks = masks_for(length);
  masks.push_back({{0}, 150});
  Mask equal_documents;
  for (int64_t start = 100; start < length; start += 100) {
    equal_documents.document_starts.push_back(start);
  }
  masks.push_back(equal_documents);
  if (length > 128) masks.push_back({{0, 128}, 0});  // a bound of tiles
  return masks;
}

void expect_same_bits_on_every_ring(const HeadShape& shape, int64_t length,
                                    const MakeBackend& make_backend) {
  for (const Mask& mask : masks_with_skipped_traffic(length)) {
    const RingAttentionCase c = random_attention(shape, mask, length);
    const RingAttentionValues<float> alone = attend_on_ring(c, Layout::contiguous, 1, plain_backend);
    for (const int ring_size : kRingSizes) {
      SCOPED_TRACE(testing::Message()
                   << "R=" << ring_size << " T=" << length << " heads=" << shape.heads << '/'
                   << shape.kv_heads << " documents=" << mask.document_starts.size()
                   << " window=" << mask.window);
      expect_same_bits(attend_on_ring(c, Layout::contiguous, ring_size, make_backend), alone);
      if (length != 513 || ring_size > 3) continue;  // enough tiles a rank for more pieces; once is enough
      expect_same_bits(attend_on_ring(c, Layout::contiguous, ring_size, make_backend, nullptr, 7), alone);
    }
  }
}

class ReproducibleAttentionTest : public testing::TestWithParam<int64_t> {};

TEST_P(ReproducibleAttentionTest, EveryRingGivesTheBitsOfOneRank) {
  for (const HeadShape& shape : {HeadShape{2, 2, 16}, HeadShape{4, 2, 24}, HeadShape{3, 1, 8}}) {
    expect_same_bits_on_every_ring(shape, GetParam(), plain_backend);
  }
}

TEST_P(ReproducibleAttentionTest, ADeviceThatRunsLateGivesTheSameBits) {
  expect_same_bits_on_every_ring({4, 2, 8}, GetParam(), late_backend);
}

INSTANTIATE_TEST_SUITE_P(Lengths, ReproducibleAttentionTest,
                         testing::Values(1, 64, 65, 200, 257, 513, 1000));

/// Bytes that all ranks send in one layer, forward and backward, without computing anything.
int64_t sent_bytes(const HeadShape& shape, const SequenceLayout& layout, const Mask& mask) {
  Traffic traffic;
  for (int rank = 0; rank < layout.ring_size(); ++rank) {
    const std::unique_ptr<Backend> device = make_dry_backend(int64_t{1} << 40);
    DryComm ring({rank, layout.ring_size()}, traffic);
    Trace trace;
    const int64_t rows = layout.rows(rank);
    const std::vector<int32_t> tokens(rows, 0);
    Step step({*device, ring, trace}, {}, Pass::training, layout, mask, 1e4, shape.head_dim, tokens, tokens);
    const auto allocate = [&](Shape of) { return device->arena().allocate("test", Dtype::f32, of); };
    const Tensor q = allocate({shape.heads, rows, shape.head_dim, 1}), dq = allocate(q.shape);
    const Tensor kv = allocate({2 * shape.kv_heads * rows * shape.head_dim, 1, 1, 1});
    const Tensor output = allocate({rows, shape.q_width(), 1, 1}), lse = allocate({shape.heads, rows, 1, 1});
    ring_attention_forward(step, shape, q, kv, output, lse);
    ring_attention_backward(step, shape, q, kv, {output, lse, lse}, dq, kv);
  }
  return traffic.exchange_bytes;
}

// Four ranks of two pieces of 64. Keys and values travel forward and backward, sums behind them and once home.
TEST(ReproducibleTrafficTest, APieceTravelsAsFarAsItIsSeenAndItsSumStraightHome) {
  const HeadShape shape{4, 2, 8};
  const SequenceLayout layout = make_layout(Layout::contiguous, 512, 4);
  const int64_t piece = 2 * shape.kv_heads * shape.head_dim * 64 * int64_t(sizeof(float));
  const int64_t all_hops = 3 + 2 + 1;
  EXPECT_EQ(sent_bytes(shape, layout, Mask{}), 2 * piece * (3 * all_hops + 3));
  EXPECT_EQ(sent_bytes(shape, layout, Mask{{0}, 65}), piece * (3 * 3 + 3));  // to the next rank only
  EXPECT_EQ(sent_bytes(shape, layout, Mask{{0}, 66}), 2 * piece * (3 * 3 + 3));
  EXPECT_EQ(sent_bytes(shape, layout, Mask{{0, 128, 256, 384}, 0}), 0);
}

// Four ranks of 512 rows; a window that reaches 64 positions back leaves all but the last piece where it is.
TEST(ReproducibleTrafficTest, MorePiecesLeaveMoreOfABlockWhereItIs) {
  const HeadShape shape{4, 2, 8};
  const int64_t row = 2 * shape.kv_heads * shape.head_dim * int64_t(sizeof(float));
  const Mask window{{0}, 65};
  for (const auto& [pieces, rows] : {std::pair(0, 256), std::pair(4, 128), std::pair(8, 64), std::pair(99, 64)}) {
    EXPECT_EQ(sent_bytes(shape, make_layout(Layout::contiguous, 2048, 4, pieces), window), row * rows * (3 * 3 + 3));
  }
  // In zigzag layout the seven bounds of eight chunks are crossed, but for the one inside of a rank.
  const auto zigzag = [&](int pieces) { return sent_bytes(shape, make_layout(Layout::zigzag, 2048, 4, pieces), window); };
  EXPECT_GT(zigzag(0), 3 * zigzag(8));
}

ModelCase model_case(int64_t kv_heads, int64_t length, const Mask& mask) {
  ModelCase c;
  c.config.vocabulary = 257;
  c.config.layers = 2;
  c.config.width = 64;
  c.config.heads = {4, kv_heads, 16};
  c.config.mlp_width = 176;
  c.config.qk_norm = kv_heads == 1;
  c.layout = Layout::contiguous;
  c.mask = mask;
  c.settings = {Recompute::selective, 100, 40};  // no multiples of a tile
  c.weights = random_parameters(c.config, 3);
  c.gradient_scale = 1.0f / float(length);
  fill_tokens(c, length, 5);
  return c;
}

class ReproducibleModelTest : public testing::TestWithParam<int64_t> {};

TEST_P(ReproducibleModelTest, EveryRingGivesTheLossesOfOneRankBitByBit) {
  int64_t kv_heads = 1;
  for (const Mask& mask : masks_with_skipped_traffic(GetParam())) {
    ModelCase c = model_case(kv_heads, GetParam(), mask);
    kv_heads = kv_heads == 4 ? 1 : 2 * kv_heads;
    const std::vector<uint32_t> alone = bits_of(run_model(c).losses);
    for (const int ring_size : kRingSizes) {
      SCOPED_TRACE(testing::Message() << "R=" << ring_size << " T=" << GetParam()
                                      << " kv heads=" << c.config.heads.kv_heads << " documents="
                                      << mask.document_starts.size() << " window=" << mask.window);
      c.ring_size = ring_size;
      EXPECT_EQ(bits_of(run_model(c).losses), alone);
    }
    EXPECT_EQ(bits_of(evaluate_model(c)), alone);
  }
}

TEST_P(ReproducibleModelTest, ADeviceThatRunsLateGivesTheSameLosses) {
  ModelCase c = model_case(2, GetParam(), Mask{{0, 100}, 0});
  const std::vector<uint32_t> alone = bits_of(run_model(c).losses);
  for (const int ring_size : kRingSizes) {
    c.ring_size = ring_size;
    EXPECT_EQ(bits_of(run_model(c, late_backend).losses), alone) << "R=" << ring_size;
  }
}

INSTANTIATE_TEST_SUITE_P(Lengths, ReproducibleModelTest, testing::Values(65, 257, 600));

}  // namespace
}  // namespace ringlet::test
