#include <gtest/gtest.h>

#include <cmath>
#include <fstream>

#include "kernels/check.h"
#include "tests/support/checkpoint_case.h"

namespace ringlet::test {
namespace {

using Names = std::vector<std::string>;
constexpr int kRanks = 4;

enum class Outcome : uint8_t { saved, own_error, peer_error };

/// Saves step 2 on four ranks; `spoil` may change what a rank gives.
template <class Spoil>
std::vector<Outcome> outcomes(const std::filesystem::path& checkpoints, const Spoil& spoil) {
  const CheckpointCase model = make_case(2, kRanks);
  std::vector<Outcome> result(kRanks, Outcome::saved);
  run_ranks({.ranks = kRanks}, [&](Comm& world, Trace& trace) {
    auto shards = shards_of(model, world.rank(), kRanks);
    CheckpointInfo info = model.info;
    spoil(world.rank(), info, shards);
    Outcome& outcome = result[size_t(world.rank())];
    try {
      save_checkpoint(checkpoints, info, weights_of(model), shards, {1}, {world, trace});
    } catch (const PeerFailed&) {
      outcome = Outcome::peer_error;
    } catch (const Error&) {
      outcome = Outcome::own_error;
    }
    world.barrier();  // a failed save leaves the Comm in order
  });
  return result;
}

// Whichever rank fails, all ranks know, and the older checkpoint is all that is there.
TEST(SaveOnRanks, OneFailureIsAFailureOfAll) {
  const std::vector<float> nan(3, std::nanf(""));
  for (int failing = 0; failing < kRanks; ++failing) {
    ScratchFolder scratch;
    save_on_ranks(scratch.path(), make_case(1, kRanks));
    std::vector<Outcome> expected(kRanks, Outcome::peer_error);
    expected[size_t(failing)] = Outcome::own_error;
    EXPECT_EQ(outcomes(scratch.path(),
                       [&](int rank, CheckpointInfo&, std::vector<Shard>& shards) {
                         if (rank == failing)
                           shards[1].first_moment = shards[1].second_moment = nan;
                       }),
              expected)
        << "rank " << failing;
    EXPECT_EQ(names_in(scratch.path()), (Names{"step_00000001"}));
    EXPECT_EQ(newest_step(scratch.path()), 1);
    EXPECT_EQ(outcomes(scratch.path(), [](int, CheckpointInfo&, std::vector<Shard>&) {}),
              std::vector<Outcome>(kRanks, Outcome::saved));
    EXPECT_EQ(names_in(scratch.path()), (Names{"step_00000002"}));
  }
}

// Rank 0 may fail before there is a folder to write to, or with the same step already there.
TEST(SaveOnRanks, RankZeroCannotStart) {
  ScratchFolder scratch;
  std::vector<Outcome> expected(kRanks, Outcome::peer_error);
  expected[0] = Outcome::own_error;
  const auto another_world = [](int, CheckpointInfo& info, std::vector<Shard>&) { info.world = 7; };
  EXPECT_EQ(outcomes(scratch.path(), another_world), expected);
  save_on_ranks(scratch.path(), make_case(2, kRanks));
  EXPECT_EQ(outcomes(scratch.path(), another_world), expected);
  EXPECT_EQ(newest_step(scratch.path()), 2);
  std::ofstream(scratch.path() / "file") << "in the way";
  EXPECT_EQ(outcomes(scratch.path() / "file", [](int, CheckpointInfo&, std::vector<Shard>&) {}),
            expected);
}

// Elements that two ranks own, or none, would be a checkpoint that cannot be resumed from.
TEST(SaveOnRanks, HolesAndOverlapsAreRefused) {
  ScratchFolder scratch;
  save_on_ranks(scratch.path(), make_case(2, kRanks));  // the step that the others look for
  std::vector<Outcome> expected(kRanks, Outcome::peer_error);
  expected[0] = Outcome::own_error;
  EXPECT_EQ(outcomes(scratch.path(),
                     [](int rank, CheckpointInfo&, std::vector<Shard>& shards) {
                       if (rank == 2) shards.clear();
                     }),
            expected);
  const CheckpointCase whole = make_case(2, kRanks);
  EXPECT_EQ(outcomes(scratch.path(),
                     [&](int rank, CheckpointInfo&, std::vector<Shard>& shards) {
                       if (rank == 2) shards = shards_of(whole, 0, 1);
                     }),
            expected);
  EXPECT_EQ(names_in(scratch.path()), (Names{"step_00000002"}));
}

}  // namespace
}  // namespace ringlet::test
