// The emulated ring must be right but for its rounding, and its rounding must be there: else a
// comparison with it says nothing.
#include "tests/support/emulated_ring.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "tests/support/bf16.h"
#include "tests/support/compare.h"

namespace ringlet::test {
namespace {

const Mask kDocumentsAndWindow{{0, 31, 100}, 40};

TEST(EmulatedRingTest, IsExactWithoutRounding) {
  for (const Mask& mask : {Mask{}, kDocumentsAndWindow}) {
    const RingAttentionCase c = random_attention({4, 2, 16}, mask, 257);
    const RingAttentionValues<double> expected = attend_densely(c);
    for (const Layout layout : {Layout::contiguous, Layout::zigzag, Layout::striped}) {
      for (const int ring_size : {1, 2, 3, 8}) {
        SCOPED_TRACE(testing::Message()
                     << name_of(layout) << " R=" << ring_size << " window=" << mask.window);
        const auto actual = attend_on_emulated_ring(c, layout, ring_size, {keep_f32, keep_f32});
        EXPECT_LE(error_of(actual.output, expected.output), kOutputTolerance);
        EXPECT_LE(error_of(actual.lse, expected.lse), kOutputTolerance);
        EXPECT_LE(error_of(actual.dq, expected.dq), kGradientTolerance);
        EXPECT_LE(error_of(actual.dk, expected.dk), kGradientTolerance);
        EXPECT_LE(error_of(actual.dv, expected.dv), kGradientTolerance);
      }
    }
  }
}

bool all_bf16(const std::vector<float>& values) {
  return std::ranges::all_of(values, [](float value) { return value == round_to_bf16(value); });
}

TEST(EmulatedRingTest, RoundsWhatItIsTold) {
  const RingAttentionCase c = random_attention({2, 1, 16}, Mask{}, 300);
  const auto run = [&](int ring_size, const RingRounding& rounding) {
    return attend_on_emulated_ring(c, Layout::zigzag, ring_size, rounding);
  };
  const auto exact = run(1, {keep_f32, keep_f32});
  const auto alone = run(1, {round_to_bf16, keep_f32});
  const auto blocks = run(8, {round_to_bf16, keep_f32});
  const auto everything = run(8, {round_to_bf16, round_to_bf16});
  // One block: nothing is merged, and dV does not hang on the stored output.
  for (size_t i = 0; i < exact.output.size(); ++i) {
    ASSERT_EQ(alone.output[i], round_to_bf16(exact.output[i])) << i;
  }
  for (size_t i = 0; i < exact.dv.size(); ++i) {
    ASSERT_EQ(alone.dv[i], round_to_bf16(exact.dv[i])) << i;
  }
  for (const auto part : {&RingAttentionValues<float>::output, &RingAttentionValues<float>::dq,
                          &RingAttentionValues<float>::dk, &RingAttentionValues<float>::dv}) {
    EXPECT_TRUE(all_bf16(blocks.*part));
    const double error_alone = error_of(alone.*part, exact.*part);
    const double error_of_blocks = error_of(blocks.*part, exact.*part);
    EXPECT_GT(error_of_blocks, error_alone);
    EXPECT_LE(error_of_blocks, 2 * error_alone);
    EXPECT_GT(error_of(everything.*part, exact.*part), error_of_blocks);
  }
  EXPECT_LE(error_of(everything.lse, exact.lse), kOutputTolerance);
}

}  // namespace
}  // namespace ringlet::test
