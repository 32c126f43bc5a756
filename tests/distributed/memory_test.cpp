// The dry run counts the bytes that the real one uses, and the ring divides what depends on the length.
#include <gtest/gtest.h>

#include "kernels/comm/dry.h"
#include "kernels/dry/dry_backend.h"
#include "tests/support/ring_case.h"
#include "train/verify/verify_problem.h"

namespace ringlet::test {
namespace {

/// Highest use of rank's arena in one training step, its parameters left out, without computing anything.
int64_t dry_peak(const ModelCase& c, int64_t length, int rank) {
  Traffic traffic;
  const std::unique_ptr<Backend> device = make_dry_backend(int64_t{1} << 45);
  DryComm ring({rank, c.ring_size}, traffic);
  Trace trace;
  const SequenceLayout layout = make_layout(c.layout, length, c.ring_size);
  Parameters parameters(c.config, *device, {rank, c.ring_size}, Parameters::Gradients::present);
  Gpt gpt(parameters);
  const int64_t base_bytes = device->arena().used_bytes();
  const std::vector<int32_t> rows(layout.rows(rank), 0);
  Step step({*device, ring, trace}, c.settings, Pass::training, layout, c.mask, 1e4,
            c.config.heads.head_dim, rows, rows);
  gpt.train(step, 1, [](int64_t) {});
  return device->arena().peak_bytes() - base_bytes;
}

GptConfig small_config() {
  GptConfig config;
  config.vocabulary = 64;
  config.layers = 3;
  config.width = 32;
  config.heads = {4, 2, 8};
  config.mlp_width = 64;
  return config;
}

TEST(MemoryTest, TheDryPeakIsTheRealPeakToTheByteOnEveryRank) {
  for (const Layout layout : {Layout::contiguous, Layout::zigzag, Layout::striped}) {
    for (const Recompute policy : {Recompute::none, Recompute::selective, Recompute::full}) {
      for (const int ring_size : {1, 2, 3, 4}) {
        for (const bool qk_norm : {false, true}) {
          ModelCase c;
          c.config = small_config();
          c.config.qk_norm = qk_norm;
          c.layout = layout;
          c.ring_size = ring_size;
          c.settings = {policy, 64, 96};
          c.mask = Mask{{0, 100}, 0};
          c.weights = random_parameters(c.config, 1);
          fill_tokens(c, 333, 1);
          const ModelResult real = run_model(c);
          for (int rank = 0; rank < ring_size; ++rank) {
            EXPECT_EQ(dry_peak(c, 333, rank), real.peak_bytes[rank])
                << name_of(layout) << ' ' << name_of(policy) << " rank " << rank << '/' << ring_size;
          }
        }
      }
    }
  }
}

ModelCase long_case(int64_t kv_heads, Recompute policy, int ring_size) {
  ModelCase c;
  c.config.vocabulary = 257;
  c.config.layers = 8;
  c.config.width = 128;
  c.config.heads = {4, kv_heads, 32};
  c.config.mlp_width = 352;
  c.settings = {policy, 512, 1024};
  c.ring_size = ring_size;
  return c;
}

/// Bytes of rank 0 that depend on the length: what doubling it adds.
double bytes_by_length(const ModelCase& c, int64_t length) {
  return double(dry_peak(c, 2 * length, 0) - dry_peak(c, length, 0));
}

// What a ring adds to a quarter of one rank's memory: two KV inboxes, two gradient inboxes, and a scratch where sums
// are added afterwards.
TEST(MemoryTest, FourRanksHoldAQuarterEachAndTheInboxes) {
  constexpr int64_t kLongTokens = 16'384;
  for (const Layout layout : {Layout::zigzag, Layout::contiguous}) {
    for (const Recompute policy : {Recompute::none, Recompute::selective, Recompute::full}) {
      for (const int64_t kv_heads : {4, 1}) {
        ModelCase c = long_case(kv_heads, policy, 1);
        c.layout = layout;
        const double one = bytes_by_length(c, kLongTokens);
        c.ring_size = 4;
        const double four = bytes_by_length(c, kLongTokens);
        const double buffers = layout == Layout::zigzag ? 5 : 4;
        const double inboxes = buffers * 2 * double(kv_heads) * 32 * sizeof(float) * kLongTokens / 4;
        const std::string name =
            name_of(layout) + std::string(name_of(policy)) + std::to_string(kv_heads);
        EXPECT_LE(four, (0.25 * one + inboxes) * 1.02) << name;
        RecordProperty(name, std::to_string(four / one));
      }
    }
  }
}

TEST(MemoryTest, GroupedHeadsKeepARankOfFourBelowThreeTenths) {
  const double one = double(dry_peak(long_case(1, Recompute::selective, 1), 16'384, 0));
  for (int rank = 0; rank < 4; ++rank) {
    EXPECT_LE(double(dry_peak(long_case(1, Recompute::selective, 4), 16'384, rank)), 0.30 * one);
  }
}

}  // namespace
}  // namespace ringlet::test
