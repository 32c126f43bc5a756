#include "train/checkpoint.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>

#include "kernels/check.h"
#include "tests/support/checkpoint_case.h"
#include "train/files.h"

namespace ringlet::test {
namespace {

using Names = std::vector<std::string>;

void write_file(const std::filesystem::path& path, const std::string& text) {
  std::ofstream(path, std::ios::binary) << text;
}

std::string reason_not_to_open(const std::filesystem::path& folder) {
  try {
    Checkpoint::open(folder).verify();
  } catch (const Error& error) {
    EXPECT_FALSE(error.advice.empty()) << error.what();
    return error.what();
  }
  return "none";
}

TEST(Checkpoint, ReadsBackEverything) {
  ScratchFolder scratch;
  const CheckpointCase model = make_case(100);
  save_alone(scratch.path() / "checkpoints", model);
  const auto folder = scratch.path() / "checkpoints" / "step_00000100";
  EXPECT_EQ(names_in(folder),
            (Names{"manifest.json", "model.safetensors", "moments-00000-of-00001.safetensors"}));
  const Checkpoint checkpoint = Checkpoint::open(folder);
  checkpoint.verify();
  EXPECT_TRUE(holds(checkpoint, model));
  const CheckpointInfo &saved = model.info, &found = checkpoint.info();
  EXPECT_EQ(found.tokens, saved.tokens);
  EXPECT_EQ(found.seed, saved.seed);
  EXPECT_EQ(found.cursor, saved.cursor);
  EXPECT_EQ(found.counters, saved.counters);
  EXPECT_EQ(found.config_toml, saved.config_toml);
  EXPECT_EQ(found.corpus_fingerprint, saved.corpus_fingerprint);
  EXPECT_EQ(found.tokenizer_name, saved.tokenizer_name);
  EXPECT_EQ(found.tokenizer_hash, saved.tokenizer_hash);
  EXPECT_EQ(found.world, saved.world);
  EXPECT_EQ(found.ring, saved.ring);
  EXPECT_EQ(found.layout, saved.layout);
  EXPECT_EQ(found.parameters.size(), saved.parameters.size());
  check_fits(found, saved.parameters);
}

class CheckpointReshardTest : public testing::TestWithParam<int> {};

TEST_P(CheckpointReshardTest, AnyWorldReadsTheSameBits) {
  ScratchFolder scratch;
  const CheckpointCase model = make_case(5, GetParam());
  save_on_ranks(scratch.path(), model);
  const Checkpoint checkpoint = Checkpoint::open(scratch.path() / "step_00000005");
  checkpoint.verify();
  for (const int world : {1, 2, 3, 4, 8}) EXPECT_TRUE(holds(checkpoint, model, world)) << world;
}
INSTANTIATE_TEST_SUITE_P(Worlds, CheckpointReshardTest, testing::Values(1, 2, 3, 4, 8));

TEST(Checkpoint, RefusesRangesThatAreNotThere) {
  ScratchFolder scratch;
  save_alone(scratch.path(), make_case(5));
  const Checkpoint checkpoint = Checkpoint::open(scratch.path() / "step_00000005");
  std::vector<float> two(2), three(3);
  EXPECT_THROW(checkpoint.read_moments("norm.weight", 10, two, two), Error);
  EXPECT_THROW(checkpoint.read_moments("norm.weight", -1, two, two), Error);
  EXPECT_THROW(checkpoint.read_moments("norm.weight", 0, two, three), Error);
  EXPECT_THROW(checkpoint.read_moments("other", 0, two, two), Error);
  EXPECT_THROW(checkpoint.read_weights("norm.weight", two), Error);
  EXPECT_THROW(checkpoint.read_weights("other", two), Error);
}

TEST(Checkpoint, KeepsTheLast) {
  ScratchFolder scratch;
  for (int64_t step = 1; step <= 4; ++step) save_alone(scratch.path(), make_case(step), 2);
  EXPECT_EQ(names_in(scratch.path()), (Names{"step_00000003", "step_00000004"}));
  save_alone(scratch.path(), make_case(5), 1);
  EXPECT_EQ(names_in(scratch.path()), (Names{"step_00000005"}));
  for (int64_t step = 6; step <= 8; ++step) save_alone(scratch.path(), make_case(step), 0);
  EXPECT_EQ(names_in(scratch.path()).size(), 4u);
}

TEST(Checkpoint, OldOnesCanGoBeforeASave) {
  ScratchFolder scratch;
  for (int64_t step = 1; step <= 4; ++step) save_alone(scratch.path(), make_case(step), 0);
  remove_old_checkpoints(scratch.path(), 3, 0);
  EXPECT_EQ(names_in(scratch.path()).size(), 4u);
  remove_old_checkpoints(scratch.path(), 3, 2);
  EXPECT_EQ(names_in(scratch.path()), (Names{"step_00000002", "step_00000003", "step_00000004"}));
  std::filesystem::rename(scratch.path() / "step_00000003", scratch.path() / "step_00000003.replaced");
  remove_old_checkpoints(scratch.path(), 3, 1);
  EXPECT_EQ(names_in(scratch.path()), (Names{"step_00000003.replaced", "step_00000004"}));
}

// Neither a damaged checkpoint nor one of a later step may cost a whole one its place.
TEST(Checkpoint, DamagedOnesDoNotCountAsKept) {
  ScratchFolder scratch;
  save_alone(scratch.path(), make_case(1), 0);
  save_alone(scratch.path(), make_case(2), 0);
  save_alone(scratch.path(), make_case(9), 0);
  std::filesystem::remove(scratch.path() / "step_00000002" / "manifest.json");
  save_alone(scratch.path(), make_case(3), 2);
  EXPECT_EQ(names_in(scratch.path()),
            (Names{"step_00000001", "step_00000002", "step_00000003", "step_00000009"}));
  save_alone(scratch.path(), make_case(4), 2);
  EXPECT_EQ(names_in(scratch.path()), (Names{"step_00000003", "step_00000004", "step_00000009"}));
}

TEST(Checkpoint, ReplacesTheSameStep) {
  ScratchFolder scratch;
  CheckpointCase model = make_case(7);
  save_alone(scratch.path(), model);
  model.weights[0][0] = 42;
  save_alone(scratch.path(), model);
  EXPECT_EQ(names_in(scratch.path()), (Names{"step_00000007"}));
  EXPECT_TRUE(holds(Checkpoint::open(scratch.path() / "step_00000007"), model));
}

TEST(Checkpoint, FindsAReplacedOneWhoseReplacementNeverCame) {
  ScratchFolder scratch;
  save_alone(scratch.path(), make_case(7));
  std::filesystem::rename(scratch.path() / "step_00000007",
                          scratch.path() / "step_00000007.replaced");
  EXPECT_EQ(newest_step(scratch.path()), 7);
  save_alone(scratch.path(), make_case(7));
  EXPECT_EQ(names_in(scratch.path()), (Names{"step_00000007"}));
}

TEST(Checkpoint, RemovesLeftoversAndNothingElse) {
  ScratchFolder scratch;
  for (const char* name : {"step_00000001.tmp", "step_00000002.tmp", ".trash-step_00000001",
                           "notes.tmp", "step_by_step", "best"}) {
    std::filesystem::create_directories(scratch.path() / name / "inner");
  }
  EXPECT_FALSE(has_checkpoints(scratch.path()));
  save_alone(scratch.path(), make_case(2));
  EXPECT_EQ(names_in(scratch.path()),
            (Names{"best", "notes.tmp", "step_00000002", "step_by_step"}));
  EXPECT_TRUE(has_checkpoints(scratch.path()));
}

TEST(Checkpoint, SaysWhatItSkipped) {
  ScratchFolder scratch;
  for (int64_t step = 1; step <= 4; ++step) save_alone(scratch.path(), make_case(step), 0);
  std::filesystem::create_directory(scratch.path() / "step_00000005.tmp");
  std::filesystem::remove(scratch.path() / "step_00000004" / "manifest.json");
  std::filesystem::resize_file(scratch.path() / "step_00000003" / "model.safetensors", 100);
  std::filesystem::rename(scratch.path() / "step_00000001", scratch.path() / "step_00000009");
  std::vector<Skipped> skipped;
  const auto checkpoint = newest_whole_checkpoint(scratch.path(), skipped);
  ASSERT_TRUE(checkpoint);
  EXPECT_TRUE(holds(*checkpoint, make_case(2)));
  ASSERT_EQ(skipped.size(), 4u);
  EXPECT_NE(skipped[0].reason.find("cut off"), std::string::npos);
  EXPECT_NE(skipped[1].reason.find("holds step 1"), std::string::npos) << skipped[1].reason;
  EXPECT_NE(skipped[2].reason.find("no manifest.json"), std::string::npos) << skipped[2].reason;
  EXPECT_NE(skipped[3].reason.find("has 100 bytes instead of"), std::string::npos)
      << skipped[3].reason;
}

// To evaluate and to generate, moments are not read.
TEST(Checkpoint, DamagedMomentsDoNotKeepTheWeightsFromBeingRead) {
  ScratchFolder scratch;
  for (int64_t step = 1; step <= 2; ++step) save_alone(scratch.path(), make_case(step), 0);
  std::filesystem::create_directory(scratch.path() / "step_00000003.tmp");
  const std::filesystem::path newest = scratch.path() / "step_00000002";
  for (const auto& entry : std::filesystem::directory_iterator(newest)) {
    if (entry.path().filename().string().starts_with("moments")) std::filesystem::resize_file(entry.path(), 10);
  }
  std::vector<Skipped> skipped;
  EXPECT_EQ(newest_whole_checkpoint(scratch.path(), skipped)->info().step, 1);
  EXPECT_EQ(skipped.size(), 2u);
  skipped.clear();
  const auto checkpoint = newest_whole_checkpoint(scratch.path(), skipped, CheckpointPart::weights);
  ASSERT_TRUE(checkpoint);
  EXPECT_TRUE(skipped.empty());
  const CheckpointCase model = make_case(2);
  std::vector<float> weights(model.weights[0].size());
  checkpoint->read_weights(model.info.parameters[0].name, weights);
  EXPECT_EQ(weights, model.weights[0]);
  std::filesystem::remove_all(newest);
  EXPECT_THAT([&] { checkpoint->read_weights(model.info.parameters[0].name, weights); },
              testing::ThrowsMessage<Error>(testing::HasSubstr("is gone")));
}

TEST(Checkpoint, NothingIsFoundWhereNothingIs) {
  ScratchFolder scratch;
  std::vector<Skipped> skipped;
  EXPECT_FALSE(newest_whole_checkpoint(scratch.path() / "absent", skipped));
  EXPECT_FALSE(newest_whole_checkpoint(scratch.path(), skipped));
  EXPECT_TRUE(skipped.empty());
}

TEST(Checkpoint, RefusesForeignFolders) {
  ScratchFolder scratch;
  const auto folder = scratch.path() / "step_00000001";
  EXPECT_NE(reason_not_to_open(folder).find("no checkpoint at"), std::string::npos);
  write_file(folder, "a file");
  EXPECT_NE(reason_not_to_open(folder).find("no checkpoint at"), std::string::npos);
  std::filesystem::remove(folder);
  std::filesystem::create_directory(folder);
  write_file(folder / "pytorch_model.bin", "?");
  EXPECT_NE(reason_not_to_open(folder).find("not a Ringlet checkpoint"), std::string::npos);
  for (const char* text : {"", "{}", "{\"step\": 1}", "\xff"}) {
    write_file(folder / "manifest.json", text);
    EXPECT_NE(reason_not_to_open(folder).find("is not the manifest"), std::string::npos) << text;
  }
}

/// A manifest with this body and the right checksum: what a hostile or a future program could
/// write.
std::string reason_for_body(const ScratchFolder& scratch, const std::string& body) {
  const auto folder = scratch.path() / "step_00000001";
  std::filesystem::create_directories(folder);
  char checksum[17];
  std::snprintf(checksum, sizeof checksum, "%016lx", static_cast<unsigned long>(checksum_of(body)));
  write_file(folder / "manifest.json",
             "{\"checksum\": \"" + std::string(checksum) + "\", \"manifest\":\n" + body + "\n}\n");
  return reason_not_to_open(folder);
}

TEST(Checkpoint, RefusesManifestsThatMakeNoSense) {
  ScratchFolder scratch;
  const auto refused = [&](const std::string& body, const std::string& because) {
    const std::string reason = reason_for_body(scratch, body);
    EXPECT_NE(reason.find(because), std::string::npos) << body << " gave " << reason;
  };
  const std::string info =
      R"("info":{"step":1,"tokens":1,"seed":1,"cursor":1,"counters":{},"config_toml":"",)"
      R"("corpus_fingerprint":"","tokenizer_name":"","tokenizer_hash":"","world":1,"ring":1,)"
      R"("layout":"","parameters":[{"name":"w","shape":[4]}]})";
  const auto body = [&](const std::string& files, const std::string& shards) {
    return R"({"format":"ringlet checkpoint","version":1,)" + info + R"(,"files":[)" + files +
           R"(],"shards":[)" + shards + "]}";
  };
  const std::string file = R"({"name":"a","bytes":0,"checksum":1})";
  refused("5", "does not make sense");
  refused("{", "does not make sense");
  refused(R"({"format":"other","version":1})", "another format");
  refused(R"({"format":"ringlet checkpoint","version":2})",
          "version 2; this ringlet reads version 1");
  refused(R"({"format":"ringlet checkpoint","version":1})", "does not make sense");
  refused(body(file, ""), "0 elements are there");
  refused(body(R"({"name":"../a","bytes":0,"checksum":1})", ""), "cannot be part");
  refused(body(R"({"name":"a","bytes":-1,"checksum":1})", ""), "cannot be part");
  refused(body(file + "," + file, ""), "cannot be part");
  const auto shard = [](const std::string& name, int64_t first, int64_t count) {
    return R"({"file":"a","parameter":")" + name + R"(","first_element":)" + std::to_string(first) +
           R"(,"count":)" + std::to_string(count) + "}";
  };
  refused(body("", shard("w", 0, 4)), "not listed");
  refused(body(file, shard("v", 0, 4)), "unknown");
  refused(body(file, shard("w", 0, 3)), "3 elements are there");
  refused(body(file, shard("w", 0, 5)), "5 elements are there");
  refused(body(file, shard("w", 0, 2) + "," + shard("w", 3, 1)), "by nobody");
  refused(body(file, shard("w", 0, 2) + "," + shard("w", 1, 3)), "twice");
  refused(body(file, shard("w", 0, -4)), "elements of w");
  refused(body(file, shard("w", 0, 4)),
          "cannot be read");  // the good twin: only the file is missing
}

TEST(Checkpoint, NamesTheFirstMisfit) {
  const CheckpointInfo info = make_case(1).info;
  const auto reason = [&](const std::vector<ParameterShape>& parameters) -> std::string {
    try {
      check_fits(info, parameters);
    } catch (const Error& error) {
      EXPECT_FALSE(error.advice.empty());
      return error.what();
    }
    return "none";
  };
  EXPECT_EQ(reason(info.parameters), "none");
  auto wider = info.parameters;
  wider[0].shape = {17, 6};
  EXPECT_EQ(reason(wider),
            "embedding.weight is [17, 6] in the config's model, [17, 5] in the checkpoint");
  auto more = info.parameters;
  more.push_back({"extra.weight", {2}});
  EXPECT_EQ(reason(more), "extra.weight is [2] in the config's model, absent in the checkpoint");
  auto fewer = info.parameters;
  fewer.pop_back();
  EXPECT_EQ(reason(fewer),
            "head.weight is absent in the config's model, [3, 4, 2] in the checkpoint");
}

// What would be a useless or a holed checkpoint is an error while the last good one is still there.
TEST(Checkpoint, RefusesToSaveNonsense) {
  ScratchFolder scratch;
  save_alone(scratch.path(), make_case(1));
  OneRank world;
  Trace trace;
  const auto refuses = [&](const CheckpointCase& model, const std::vector<NamedWeights>& weights,
                           const std::vector<Shard>& shards) {
    EXPECT_THROW(save_checkpoint(scratch.path(), model.info, weights, shards, {}, {world, trace}), Error);
    EXPECT_EQ(names_in(scratch.path()), (Names{"step_00000001"}));
  };
  const CheckpointCase good = make_case(2);
  CheckpointCase broken = good;
  broken.weights[1][10] = std::nanf("");
  refuses(broken, weights_of(broken), shards_of(broken, 0, 1));
  broken = good;
  broken.second[2][0] = HUGE_VALF;
  refuses(broken, weights_of(broken), shards_of(broken, 0, 1));
  auto weights = weights_of(good);
  std::swap(weights[0], weights[1]);
  refuses(good, weights, shards_of(good, 0, 1));
  weights.pop_back();
  refuses(good, weights, shards_of(good, 0, 1));
  auto shards = shards_of(good, 0, 1);
  shards.pop_back();
  refuses(good, weights_of(good), shards);
  shards = shards_of(good, 0, 1);
  shards.push_back(shards[0]);
  refuses(good, weights_of(good), shards);
  broken = good;
  broken.info.world = 2;
  refuses(broken, weights_of(broken), shards_of(broken, 0, 1));
  broken = good;
  broken.info.layout = "\xff";
  refuses(broken, weights_of(broken), shards_of(broken, 0, 1));
}

/// Notes at each barrier when the rank was last seen to move.
class NotingRank : public OneRank {
 public:
  explicit NotingRank(const Trace& trace) : trace_(trace) {}
  void barrier() override { signs.push_back(trace_.last_sign()); }
  std::vector<Trace::Clock::time_point> signs;

 private:
  const Trace& trace_;
};

TEST(Checkpoint, ARankThatSavesIsSeenToMove) {
  ScratchFolder scratch;
  const CheckpointCase model = make_case(1);
  Trace trace;
  NotingRank world(trace);
  save_checkpoint(scratch.path(), model.info, weights_of(model), shards_of(model, 0, 1), {},
                  {world, trace});
  ASSERT_EQ(world.signs.size(), 3u);
  EXPECT_GT(world.signs[1], world.signs[0]) << "while it wrote";
}

}  // namespace
}  // namespace ringlet::test
