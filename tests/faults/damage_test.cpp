#include <gtest/gtest.h>

#include <fstream>

#include "tests/support/checkpoint_case.h"
#include "train/files.h"

namespace ringlet::test {
namespace {

void write_file(const std::filesystem::path& path, const std::string& text) {
  std::ofstream(path, std::ios::binary) << text;
}

/// An older checkpoint and a newer one that the tests damage.
class DamageTest : public testing::Test {
 protected:
  void SetUp() override {
    save_on_ranks(scratch_.path(), make_case(1, 2));
    save_on_ranks(scratch_.path(), make_case(2, 2));
    for (const std::string& name : names_in(folder_)) {
      files_.push_back({folder_ / name, read_text(folder_ / name, 1'000'000)});
    }
  }

  /// The older one is found, bit for bit, with a reason for passing over the other.
  void expect_fallback(const std::string& what) const {
    std::vector<Skipped> skipped;
    const auto checkpoint = newest_whole_checkpoint(scratch_.path(), skipped);
    ASSERT_TRUE(checkpoint) << what;
    ASSERT_TRUE(holds(*checkpoint, make_case(1))) << what;
    ASSERT_EQ(skipped.size(), 1u) << what;
    ASSERT_EQ(skipped[0].path, folder_) << what;
    ASSERT_FALSE(skipped[0].reason.empty()) << what;
  }

  struct File {
    std::filesystem::path path;
    std::string text;
  };
  ScratchFolder scratch_;
  const std::filesystem::path folder_ = scratch_.path() / "step_00000002";
  std::vector<File> files_;
};

TEST_F(DamageTest, EveryBitCounts) {
  size_t total_bytes = 0;
  for (const File& file : files_) total_bytes += file.text.size();
  const CounterRandom random(7, 1);
  for (uint64_t trial = 0; trial < 1500; ++trial) {
    size_t bit = random.bits(trial) % (total_bytes * 8);
    const File* file = files_.data();
    for (; bit >= file->text.size() * 8; ++file) bit -= file->text.size() * 8;
    std::string damaged = file->text;
    damaged[bit / 8] = static_cast<char>(damaged[bit / 8] ^ (1 << (bit % 8)));
    write_file(file->path, damaged);
    expect_fallback("bit " + std::to_string(bit) + " of " + file->path.string());
    write_file(file->path, file->text);
    if (HasFatalFailure()) return;
  }
  EXPECT_EQ(newest_step(scratch_.path()), 2) << "the undamaged twin";
}

TEST_F(DamageTest, EveryLengthCounts) {
  const CounterRandom random(7, 2);
  for (uint64_t trial = 0; trial < 500; ++trial) {
    const File& file = files_[trial % files_.size()];
    const size_t bytes = random.bits(trial) % file.text.size();
    const bool longer = trial % 8 >= 4;
    write_file(file.path,
               longer ? file.text + std::string(bytes + 1, '\n') : file.text.substr(0, bytes));
    expect_fallback(std::to_string(bytes) + " bytes of " + file.path.string());
    write_file(file.path, file.text);
    if (HasFatalFailure()) return;
  }
}

TEST_F(DamageTest, EveryFileCounts) {
  for (const File& file : files_) {
    std::filesystem::remove(file.path);
    expect_fallback("without " + file.path.string());
    std::filesystem::create_directory(file.path);
    expect_fallback("a folder instead of " + file.path.string());
    std::filesystem::remove(file.path);
    write_file(file.path, file.text);
  }
}

}  // namespace
}  // namespace ringlet::test
