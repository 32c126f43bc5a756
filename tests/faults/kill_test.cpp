#include <fmt/format.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <fstream>
#include <optional>
#include <set>

#include "kernels/random.h"
#include "tests/faults/child.h"
#include "tests/support/checkpoint_case.h"

namespace ringlet::test {
namespace {

/// What the child does over an older checkpoint: saves `step`, keeps `keep_last`. The older one is
/// of step 1.
struct SaveCase {
  int64_t step;
  int keep_last;
};

CheckpointCase model_of(const SaveCase& save) {
  CheckpointCase model = make_case(save.step);
  if (save.step == 1) model.weights[0][0] = 42;  // another content for the same step
  return model;
}

/// A checkpoint of the same step moves aside first.
int renames_to_place(const SaveCase& save) { return save.step == 1 ? 2 : 1; }

enum class Found : uint8_t { nothing, older, newer };

Found found_in(const std::filesystem::path& checkpoints, const SaveCase& save) {
  std::vector<Skipped> skipped;
  const auto checkpoint = newest_whole_checkpoint(checkpoints, skipped);
  if (!checkpoint) return Found::nothing;
  if (holds(*checkpoint, model_of(save))) return Found::newer;
  return holds(*checkpoint, make_case(1)) ? Found::older : Found::nothing;
}

bool has_temporary(const std::filesystem::path& checkpoints) {
  for (const std::string& name : names_in(checkpoints)) {
    if (name.ends_with(".tmp")) return true;
  }
  return false;
}

/// Prepares the older checkpoint and starts the save of the other.
struct Attempt {
  explicit Attempt(const SaveCase& save) {
    save_alone(scratch.path(), make_case(1));
    child.emplace([&] { save_alone(scratch.path(), model_of(save), save.keep_last); });
  }
  bool impossible() const { return child->ending() == Ending::not_possible; }
  ScratchFolder scratch;
  std::optional<TracedChild> child;
};

constexpr const char* kNoTracing = "ptrace is not permitted here";

class SaveFaultTest : public testing::TestWithParam<SaveCase> {};

bool is_rename(const SystemCall& call) {
#if defined(__x86_64__)
  return call.number == SYS_rename;
#else
  return call.number == SYS_renameat || call.number == SYS_renameat2;
#endif
}

/// Runs the child up to its call number `index`, which it does not make. How many renames it has
/// made; nothing when it came to its end.
std::optional<int> renames_before_call(TracedChild& child, int index) {
  int renames = 0;
  auto call = child.next_call();
  for (; call && index > 0; --index) {
    renames += is_rename(*call) ? 1 : 0;
    call = child.next_call();
  }
  return call ? std::optional(renames) : std::nullopt;
}

// Stopped for good before any of its system calls, a save leaves the older checkpoint before its
// rename into place and the new one after it, never less; and the next save cleans up.
TEST_P(SaveFaultTest, KilledAtEverySystemCall) {
  int kills[2] = {0, 0};  // before and after the rename
  for (int index = 0;; ++index) {
    Attempt attempt(GetParam());
    if (attempt.impossible()) GTEST_SKIP() << kNoTracing;
    const auto renames = renames_before_call(*attempt.child, index);
    if (!renames) break;
    attempt.child.reset();
    const bool in_place = *renames >= renames_to_place(GetParam());
    ASSERT_EQ(found_in(attempt.scratch.path(), GetParam()), in_place ? Found::newer : Found::older)
        << "killed at call " << index;
    save_alone(attempt.scratch.path(), make_case(3), 1);
    ASSERT_EQ(names_in(attempt.scratch.path()), (std::vector<std::string>{"step_00000003"}));
    ++kills[in_place ? 1 : 0];
  }
  EXPECT_GT(kills[0], 30);
  EXPECT_GT(kills[1], 10);
  RecordProperty("calls", kills[0] + kills[1]);
}

/// Calls whose failure a disk can cause.
bool touches_disk(uint64_t call) {
  static const std::set<uint64_t> calls {
#if defined(__x86_64__)
    SYS_rename, SYS_mkdir, SYS_unlink, SYS_rmdir, SYS_open, SYS_stat,
#endif
        SYS_openat, SYS_write, SYS_read, SYS_fsync, SYS_close, SYS_getdents64, SYS_statfs,
        SYS_mkdirat, SYS_unlinkat, SYS_newfstatat, SYS_fstat, SYS_renameat2, SYS_statx
  };
  return calls.contains(call);
}

/// Lets the child's disk call number `index` fail, and runs it to its end. The call, if there were
/// so many.
std::optional<uint64_t> fail_disk_call(TracedChild& child, int index, int error_number) {
  std::optional<uint64_t> failed;
  while (const auto call = child.next_call()) {
    if (failed || !touches_disk(call->number) || index-- > 0) continue;
    failed = call->number;
    if (!child.inject(error_number)) throw NotPossible{};
  }
  return failed;
}

// A failure of any single call on the disk is an Error with the older checkpoint found and nothing
// left behind, or does not matter and the new one is found. That of a write or fsync always
// matters.
TEST_P(SaveFaultTest, ErrorAtEveryDiskCall) {
#if !defined(__x86_64__)
  GTEST_SKIP() << "errors are injected on x86-64 only";
#endif
  for (const int error_number : {EIO, ENOSPC}) {
    int errors = 0;
    for (int index = 0;; ++index) {
      Attempt attempt(GetParam());
      if (attempt.impossible()) GTEST_SKIP() << kNoTracing;
      const auto failed = fail_disk_call(*attempt.child, index, error_number);
      if (!failed) break;
      SCOPED_TRACE(fmt::format("disk call {}, number {}", index, *failed));
      const Found found = found_in(attempt.scratch.path(), GetParam());
      if (attempt.child->ending() == Ending::error) {
        ++errors;
        ASSERT_EQ(found, Found::older);
        ASSERT_FALSE(has_temporary(attempt.scratch.path()));
      } else {
        ASSERT_EQ(attempt.child->ending(), Ending::done);
        ASSERT_EQ(found, Found::newer);
        ASSERT_TRUE(*failed != SYS_write && *failed != SYS_fsync) << "nobody noticed";
      }
    }
    EXPECT_GT(errors, 20);
    RecordProperty(error_number == EIO ? "EIO" : "ENOSPC", errors);
  }
}

// The older checkpoint may go only when the new one reads as it was written.
TEST_P(SaveFaultTest, DamageOnTheWayToTheDiskIsNoticed) {
  for (const std::string name :
       {"model.safetensors", "moments-00000-of-00001.safetensors", "manifest.json"}) {
    Attempt attempt(GetParam());
    if (attempt.impossible()) GTEST_SKIP() << kNoTracing;
    int damaged = 0;
    while (const auto call = attempt.child->next_call()) {
      const std::filesystem::path path = attempt.child->path_of(call->first_argument);
      if (call->number != SYS_fsync || path.filename() != name) continue;
      std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
      file.seekp(static_cast<std::streamoff>(std::filesystem::file_size(path) / 2)).put('~');
      ++damaged;
    }
    EXPECT_EQ(damaged, 1) << name;
    EXPECT_EQ(attempt.child->ending(), Ending::error) << name;
    EXPECT_EQ(found_in(attempt.scratch.path(), GetParam()), Found::older) << name;
  }
}

// A kill leaves the system's memory alone, so it cannot show a missing fsync; the order of the
// calls can. Before the rename everything written must be on the disk, names included, and the
// manifest last; after it, the rename itself, before an older checkpoint goes.
TEST_P(SaveFaultTest, EverythingIsOnTheDiskBeforeItCounts) {
  Attempt attempt(GetParam());
  if (attempt.impossible()) GTEST_SKIP() << kNoTracing;
  const std::string checkpoints = attempt.scratch.path(),
                    temporary = fmt::format("{}/step_{:08}.tmp", checkpoints, GetParam().step);
  std::set<std::string>
      unsafe;  // files with bytes, folders with names, that a power cut would lose
  int renames = 0, syncs = 0;
  while (const auto call = attempt.child->next_call()) {
    const uint64_t number = call->number;
    const std::string path = attempt.child->path_of(call->first_argument);
    if (number == SYS_write && path.starts_with(temporary)) {
      if (path.ends_with("manifest.json")) {
        EXPECT_TRUE(unsafe.empty() || unsafe == std::set<std::string>({path, temporary}));
      }
      unsafe.insert({path, temporary});
    } else if (number == SYS_fsync) {
      ++syncs;
      unsafe.erase(path);
    } else if (is_rename(*call)) {
      EXPECT_TRUE(unsafe.empty()) << "rename " << renames << " before fsync of " << *unsafe.begin();
      if (++renames == renames_to_place(GetParam())) unsafe.insert(checkpoints);
    }
  }
  EXPECT_EQ(attempt.child->ending(), Ending::done);
  EXPECT_GE(renames, renames_to_place(GetParam()) + 1) << "the older one went";
  EXPECT_TRUE(unsafe.empty());
  EXPECT_GE(syncs, 6);
}

INSTANTIATE_TEST_SUITE_P(Saves, SaveFaultTest, testing::Values(SaveCase{2, 1}, SaveCase{1, 1}),
                         [](const auto& test) {
                           return test.param.step == 1 ? "SameStepAgain" : "NextStep";
                         });

// What waits in the system's memory is bounded, so that no call of a save takes minutes on a slow disk.
TEST(SaveFault, ALargeFileGoesToTheDiskBitByBit) {
  ScratchFolder scratch;
  const std::vector<std::byte> block(1 << 20);
  const auto write_large = [&] {
    OutputFile file(scratch.path() / "large");
    for (int i = 0; i < 130; ++i) file.write(block);
    file.finish();
  };
  const auto syncs_of = [](TracedChild& child, int fail_at) {
    int syncs = 0;
    while (const auto call = child.next_call()) {
      if (call->number != SYS_fdatasync) continue;
      if (syncs++ == fail_at) child.inject(EIO);
    }
    return syncs;
  };
  TracedChild child(write_large);
  const int syncs = syncs_of(child, -1);
  if (child.ending() == Ending::not_possible) GTEST_SKIP() << kNoTracing;
  EXPECT_EQ(child.ending(), Ending::done);
  EXPECT_EQ(syncs, 2);
#if defined(__x86_64__)
  std::filesystem::remove(scratch.path() / "large");
  TracedChild failing(write_large);
  EXPECT_EQ(syncs_of(failing, 0), 1);
  EXPECT_EQ(failing.ending(), Ending::error);
#endif
}

[[noreturn]] void save_for_ever(const std::filesystem::path& checkpoints, int64_t step) {
  try {
    for (;; ++step) save_on_ranks(checkpoints, make_case(step, 4), 1);
  } catch (...) {
    ::_exit(1);
  }
}

// All ranks at once, at random moments of a loop of saves.
TEST(SaveFault, KilledAtRandomWithFourRanks) {
  ScratchFolder scratch;
  const auto start = std::chrono::steady_clock::now();
  save_on_ranks(scratch.path(), make_case(1, 4), 1);
  const std::chrono::duration<double, std::micro> save_time =
      std::chrono::steady_clock::now() - start;
  const CounterRandom random(1, 1);
  int64_t newest = 1;
  for (uint64_t trial = 0; trial < 30; ++trial) {
    const pid_t child = ::fork();
    if (child == 0) save_for_ever(scratch.path(), newest + 1);
    ::usleep(static_cast<unsigned>(random.uniform(trial) * 4 * save_time.count()));
    ::kill(child, SIGKILL);
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFSIGNALED(status)) << "a save failed by itself";
    const int64_t found = newest_step(scratch.path());
    ASSERT_GE(found, newest) << "trial " << trial;
    newest = found;
  }
  EXPECT_GT(newest, 1) << "the saves came to nothing";
  save_on_ranks(scratch.path(), make_case(newest + 1, 4), 1);
  EXPECT_EQ(names_in(scratch.path()).size(), 1u);
}

}  // namespace
}  // namespace ringlet::test
