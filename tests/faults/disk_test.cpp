#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/resource.h>

#include "kernels/check.h"
#include "tests/faults/child.h"
#include "tests/support/checkpoint_case.h"
#include "train/run_folder.h"

namespace ringlet::test {
namespace {

using Names = std::vector<std::string>;

void limit_file_size(rlim_t bytes) {
  ::signal(SIGXFSZ, SIG_IGN);
  const rlimit limit{bytes, bytes};
  ::setrlimit(RLIMIT_FSIZE, &limit);
}

/// Mounts a small file system in memory on the folder, for this process alone. Needs root.
void mount_small(const std::filesystem::path& folder, const std::string& options) {
  if (::unshare(CLONE_NEWNS) != 0 ||
      ::mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0 ||
      ::mount("none", folder.c_str(), "tmpfs", 0, options.c_str()) != 0) {
    throw NotPossible{};
  }
}

/// The error's cause, or "none".
template <class Work>
std::string cause_of(const Work& work) {
  try {
    work();
  } catch (const Error& error) {
    return error.advice.empty() ? "no advice" : error.what();
  }
  return "none";
}

void expect(bool condition, const std::string& what) {
  if (!condition) throw std::runtime_error(what);
}

// Writes that stop half-way, at every size from nothing to all.
TEST(Disk, FilesThatMayNotGrow) {
  ScratchFolder scratch;
  save_alone(scratch.path(), make_case(1));
  int refused = 0;
  for (rlim_t bytes = 0; bytes <= 4000; bytes += 100) {
    const Ending ending = run_in_child([&] {
      limit_file_size(bytes);
      save_alone(scratch.path(), make_case(2));
    });
    if (ending == Ending::done) break;
    ++refused;
    ASSERT_EQ(ending, Ending::error) << bytes;
    ASSERT_EQ(names_in(scratch.path()), (Names{"step_00000001"})) << bytes;
    ASSERT_EQ(newest_step(scratch.path()), 1) << bytes;
  }
  EXPECT_GE(refused, 10);
  EXPECT_EQ(newest_step(scratch.path()), 2) << "with room enough it is saved";
}

TEST(Disk, TooSmallIsSaidBeforeAnythingIsWritten) {
  ScratchFolder scratch;
  const Ending ending = run_in_child([&] {
    mount_small(scratch.path(), "size=400k");
    save_alone(scratch.path(), make_case(1));
    CheckpointCase large = make_case(2);
    large.info.parameters[0].shape = {1000, 50};
    for (auto* values : {&large.weights, &large.first, &large.second}) (*values)[0].resize(50'000);
    const std::string cause = cause_of([&] { save_alone(scratch.path(), large); });
    expect(cause.starts_with("saving step 2 needs 0.9 MB, "), cause);
    expect(names_in(scratch.path()) == Names{"step_00000001"}, "only the older one is there");
    expect(newest_step(scratch.path()) == 1, "the older one is whole");
  });
  if (ending == Ending::not_possible) GTEST_SKIP() << "mounting needs root";
  EXPECT_EQ(ending, Ending::done);
}

// The blocks are enough but the file system runs out of files: at every file of a save.
TEST(Disk, FullInTheMidstOfASave) {
  ScratchFolder scratch;
  int refused = 0;
  for (int files = 5; files < 30; ++files) {
    const Ending ending = run_in_child([&] {
      mount_small(scratch.path(), fmt::format("size=4m,nr_inodes={}", files));
      expect(cause_of([&] { save_alone(scratch.path(), make_case(1)); }) == "none", "one fits");
      const std::string cause = cause_of([&] { save_alone(scratch.path(), make_case(2)); });
      if (cause == "none") return;
      expect(cause.ends_with("No space left on device"), cause);
      expect(names_in(scratch.path()) == Names{"step_00000001"}, "only the older one is there");
      expect(newest_step(scratch.path()) == 1, "the older one is whole");
      throw Error(cause, "as it should be");
    });
    if (ending == Ending::not_possible) GTEST_SKIP() << "mounting needs root";
    if (ending == Ending::done) break;
    ASSERT_EQ(ending, Ending::error) << files;
    ++refused;
  }
  EXPECT_GE(refused, 4);
}

TEST(Disk, ReadOnlyIsSaid) {
  ScratchFolder scratch;
  const Ending ending = run_in_child([&] {
    mount_small(scratch.path(), "size=4m");
    save_alone(scratch.path() / "checkpoints", make_case(1));
    expect(::mount("none", scratch.path().c_str(), nullptr, MS_REMOUNT | MS_RDONLY, nullptr) == 0,
           "mounted read-only");
    std::string cause = cause_of([&] { save_alone(scratch.path() / "checkpoints", make_case(2)); });
    expect(cause.find("Read-only file system") != std::string::npos, cause);
    cause = cause_of([&] { RunFolder(scratch.path() / "run", RunStart::fresh); });
    expect(cause.find("Read-only file system") != std::string::npos, cause);
    cause = cause_of([&] { RunFolder(scratch.path(), RunStart::resume); });
    expect(cause.find("Read-only file system") != std::string::npos, cause);
    expect(newest_step(scratch.path() / "checkpoints") == 1, "the older one can be read");
  });
  if (ending == Ending::not_possible) GTEST_SKIP() << "mounting needs root";
  EXPECT_EQ(ending, Ending::done);
}

}  // namespace
}  // namespace ringlet::test
