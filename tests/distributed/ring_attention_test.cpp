// Ring attention of any size, layout, mask, head grouping and length must give what one device gives.
#include "tests/support/ring_attention_case.h"

#include <gtest/gtest.h>

#include "tests/support/compare.h"

namespace ringlet::test {
namespace {

/// Comparing dQ and dK relative to nothing is meaningless where they vanish exactly (a lone key's
/// softmax has no gradient), so they are measured against the size of dV's terms there.
double gradient_error(const std::vector<float>& actual, const std::vector<double>& expected) {
  double difference = 0, norm = 0;
  for (size_t i = 0; i < actual.size(); ++i) {
    difference += (actual[i] - expected[i]) * (actual[i] - expected[i]);
    norm += expected[i] * expected[i];
  }
  return std::sqrt(difference) / std::sqrt(std::max(norm, 1e-3 * double(expected.size())));
}

void expect_equal(const RingAttentionValues<float>& actual,
                  const RingAttentionValues<double>& expected) {
  EXPECT_LE(error_of(actual.output, expected.output), kOutputTolerance);
  EXPECT_LE(error_of(actual.lse, expected.lse), kOutputTolerance);
  EXPECT_LE(gradient_error(actual.dq, expected.dq), kGradientTolerance);
  EXPECT_LE(gradient_error(actual.dk, expected.dk), kGradientTolerance);
  EXPECT_LE(gradient_error(actual.dv, expected.dv), kGradientTolerance);
}

class RingAttentionTest : public testing::TestWithParam<int64_t> {};

TEST_P(RingAttentionTest, EqualsOneDeviceInEveryLayoutMaskAndRing) {
  const int64_t length = GetParam();
  const std::vector<int> ring_sizes{1, 2, 3, 4, 5, 8};
  for (const HeadShape& shape : {HeadShape{2, 2, 16}, HeadShape{4, 2, 8}, HeadShape{3, 1, 8}}) {
    for (const Mask& mask : masks_for(length)) {
      const RingAttentionCase c = random_attention(shape, mask, length);
      const RingAttentionValues<double> expected = attend_densely(c);
      for (const Layout layout : {Layout::contiguous, Layout::zigzag, Layout::striped}) {
        for (const int ring_size : ring_sizes) {
          SCOPED_TRACE(testing::Message()
                       << name_of(layout) << " R=" << ring_size << " T=" << length << " heads="
                       << shape.heads << '/' << shape.kv_heads << " documents="
                       << mask.document_starts.size() << " window=" << mask.window);
          expect_equal(attend_on_ring(c, layout, ring_size), expected);
        }
      }
    }
  }
}
INSTANTIATE_TEST_SUITE_P(Lengths, RingAttentionTest,
                         testing::Values(1, 2, 7, 63, 64, 65, 257, 1000));

// Every wait that the schedule forgets shows up as a difference here: operations run late, sends are
// read late, inboxes are written late.
TEST(RingAttentionOrderTest, HoldsWhenTheDeviceRunsLate) {
  for (const Layout layout : {Layout::contiguous, Layout::zigzag, Layout::striped}) {
    for (const int ring_size : {1, 2, 3, 4, 5, 8}) {
      for (const int64_t length : {1, 2, 7, 63, 64, 65, 257}) {
        SCOPED_TRACE(testing::Message() << name_of(layout) << " R=" << ring_size << " T=" << length);
        const bool grouped = length % 2 == 1;
        const HeadShape shape = grouped ? HeadShape{4, 2, 8} : HeadShape{2, 2, 8};
        const RingAttentionCase c =
            random_attention(shape, masks_for(length)[size_t(ring_size) % 4], length);
        expect_equal(attend_on_ring(c, layout, ring_size, late_backend), attend_densely(c));
      }
    }
  }
}

TEST(RingAttentionOrderTest, HoldsInMorePiecesAHop) {
  for (const int64_t length : {7, 400}) {
    for (const Mask& mask : masks_for(length)) {
      const RingAttentionCase c = random_attention({4, 2, 8}, mask, length);
      const RingAttentionValues<double> expected = attend_densely(c);
      for (const Layout layout : {Layout::contiguous, Layout::zigzag, Layout::striped}) {
        for (const int ring_size : {2, 3}) {
          SCOPED_TRACE(testing::Message() << name_of(layout) << " R=" << ring_size << " T=" << length << " documents="
                                          << mask.document_starts.size() << " window=" << mask.window);
          expect_equal(attend_on_ring(c, layout, ring_size, late_backend, nullptr, 8), expected);
        }
      }
    }
  }
}

TEST(RingAttentionErrorTest, DoesNotGrowWithTheRing) {
  const RingAttentionCase c = random_attention({2, 1, 16}, Mask{}, 600);
  const RingAttentionValues<double> expected = attend_densely(c);
  for (const Layout layout : {Layout::contiguous, Layout::zigzag, Layout::striped}) {
    const RingAttentionValues<float> two = attend_on_ring(c, layout, 2);
    const RingAttentionValues<float> eight = attend_on_ring(c, layout, 8);
    EXPECT_LE(error_of(eight.output, expected.output), 2 * error_of(two.output, expected.output));
    EXPECT_LE(error_of(eight.dq, expected.dq), 2 * error_of(two.dq, expected.dq));
    EXPECT_LE(error_of(eight.dk, expected.dk), 2 * error_of(two.dk, expected.dk));
    EXPECT_LE(error_of(eight.dv, expected.dv), 2 * error_of(two.dv, expected.dv));
  }
}

}  // namespace
}  // namespace ringlet::test
