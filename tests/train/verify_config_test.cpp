// What a config asks of the verification.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kernels/check.h"
#include "train/verify/verify_config.h"

namespace ringlet::test {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

Config config_with(const std::vector<std::string>& settings) {
  return parse_config("", "the test", settings);
}

TEST(VerifyConfigTest, TheMasksAreThoseOfTheConfig) {
  using enum VerifyMask;
  const auto masks = [](const std::vector<std::string>& settings) {
    return start_matrix(config_with(settings)).masks;
  };
  EXPECT_THAT(masks({}), ElementsAre(causal, documents));
  EXPECT_THAT(masks({"data.window=50"}), ElementsAre(window, documents_and_window));
  EXPECT_THAT(masks({"data.mask=causal"}), ElementsAre(causal, packed));
  EXPECT_THAT(masks({"data.mask=causal", "data.window=50"}), ElementsAre(window, packed_and_window));
}

TEST(VerifyConfigTest, AWorldIsCutToSixteenRanksAndTheLineSaysSo) {
  const Config config = config_with({"run.ranks=40", "run.ring=20"});
  const VerifyMatrix matrix = start_matrix(config);
  ASSERT_EQ(matrix.worlds.size(), 1u);
  EXPECT_EQ(matrix.worlds[0].ring_size, 8);
  EXPECT_EQ(matrix.worlds[0].rings, 2);
  EXPECT_THAT(verify_start(config, real_parts()), HasSubstr("2 rings of 8 (standing for 2 rings of 20)"));
  const std::string plain = verify_start(config_with({"run.ranks=3", "run.ring=3"}), real_parts());
  EXPECT_THAT(plain, HasSubstr("on a ring of 3 equal"));
}

TEST(VerifyConfigTest, PiecesAreVerifiedWhereARankHasEnoughTiles) {
  for (const char* const layout : {"contiguous", "zigzag", "striped"}) {
    const Config config = config_with({"run.ranks=3", "run.pieces=9", std::string("run.layout=") + layout});
    const VerifyMatrix matrix = start_matrix(config);
    EXPECT_EQ(matrix.worlds.front().pieces, 9);
    EXPECT_GT(make_layout(config.run.layout, matrix.lengths.back(), 3, 9).most_pieces(), 2) << layout;
    EXPECT_THAT(verify_start(config, real_parts()), HasSubstr("on a ring of 3 equal"));
  }
  const VerifyMatrix alone = start_matrix(config_with({"run.pieces=9"}));
  EXPECT_EQ(alone.worlds.front().pieces, 0);
  EXPECT_THAT(alone.lengths, ElementsAre(61, 193));
}

TEST(VerifyConfigTest, TheOwnSizeIsLeftOutWhenItWouldTakeTooMuch) {
  const Config config = config_with({"run.seq_len=64", "run.ranks=2", "model.width=64"});
  const auto result = [&](OwnSizeBudget budget) {
    return verify_own_size(config, 100, real_parts(), budget).result;
  };
  EXPECT_FALSE(result({1e-9, 1e12}).has_value());
  EXPECT_FALSE(result({1e3, 1e3}).has_value());
  const auto done = result({1e3, 1e12});
  ASSERT_TRUE(done.has_value());
  EXPECT_EQ(done->against, VerifyAgainst::one_rank);
  EXPECT_TRUE(done->passed());
  const OwnSizeCheck check = verify_own_size(config, 100, real_parts(), {1e-9, 1e12});
  const auto sampled = result({0.75 * check.estimated_seconds, 1e12});  // the ring, but not one rank
  ASSERT_TRUE(sampled.has_value());
  EXPECT_EQ(sampled->against, VerifyAgainst::samples);
  EXPECT_TRUE(sampled->passed());
}

}  // namespace
}  // namespace ringlet::test
