// Ring attention of any size, layout, mask, head grouping and length must give what one device gives.
#include "tests/support/ring_attention_case.h"

#include <gtest/gtest.h>

#include <chrono>
#include <memory>
#include <mutex>

#include "kernels/observed_backend.h"
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

/// The attention steps of all ranks.
class StepLog : public OpObserver {
 public:
  explicit StepLog(const Mask& mask) : mask_(mask) {}
  void on_call(const OpCall& call, std::chrono::nanoseconds) override {
    if (call.op != Op::attention_forward && call.op != Op::attention_backward) return;
    const std::lock_guard lock(mutex_);
    (call.op == Op::attention_forward ? forward : backward) += 1;
    (call.op == Op::attention_forward ? forward_pairs : backward_pairs) += visible_pairs(mask_, call.queries, call.keys);
  }
  void on_wait(Event) override {}
  int64_t forward = 0, backward = 0, forward_pairs = 0, backward_pairs = 0;

 private:
  const Mask& mask_;
  std::mutex mutex_;
};

void attend_watched(const RingAttentionCase& c, Layout layout, int ring_size, int pieces, StepLog& log) {
  std::mutex mutex;
  std::vector<std::unique_ptr<Backend>> devices;
  const MakeBackend watched = [&](int64_t bytes, Trace& trace) {
    const std::lock_guard lock(mutex);
    devices.push_back(plain_backend(bytes, trace));
    return std::make_unique<ObservedBackend>(*devices.back(), log);
  };
  attend_on_ring(c, layout, ring_size, watched, nullptr, pieces);
}

// What plans and profiles count a step's work by: the positions of its queries and keys.
TEST(RingAttentionStepsTest, HaveEveryVisiblePairOnce) {
  constexpr int64_t kLength = 400;
  const Piece whole{0, 1, 0, kLength};
  std::vector<Mask> masks = masks_for(kLength);
  // On four ranks some of a rank's second queries see all of a piece that its first ones see, and some do not.
  masks.insert(masks.end(), {Mask{{0}, 260}, Mask{{0, 320}, 0}});
  for (const Mask& mask : masks) {
    const RingAttentionCase c = random_attention({1, 1, 8}, mask, kLength);
    for (const Layout layout : {Layout::contiguous, Layout::zigzag, Layout::striped}) {
      for (const int ring_size : {1, 2, 4}) {
        for (const int pieces : {0, 8}) {
          SCOPED_TRACE(testing::Message() << name_of(layout) << " R=" << ring_size << " documents=" << mask.document_starts.size()
                                          << " window=" << mask.window << " pieces=" << pieces);
          StepLog log(mask);
          attend_watched(c, layout, ring_size, pieces, log);
          EXPECT_EQ(log.forward_pairs, visible_pairs(mask, whole, whole));
          EXPECT_EQ(log.backward_pairs, log.forward_pairs);
          EXPECT_EQ(log.backward, log.forward);
        }
      }
    }
  }
}

// Of an earlier rank all queries see the first piece: one step. Of a later one the second queries see both: two.
TEST(RingAttentionStepsTest, AreOneForAllQueriesThatSeeAWholePiece) {
  const Mask mask;
  const RingAttentionCase c = random_attention({1, 1, 8}, mask, 400);
  StepLog log(mask);
  attend_watched(c, Layout::zigzag, 4, 0, log);
  // Rank 3's two chunks touch and are one piece.
  const int64_t own = 3 * 3 + 1, from_earlier = 1 + 2 + 3, from_later = 2 * 3 + 3;
  EXPECT_EQ(log.forward, own + from_earlier + from_later);
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
