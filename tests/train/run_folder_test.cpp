#include "train/run_folder.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <fstream>

#include "kernels/check.h"
#include "tests/support/checkpoint_case.h"

namespace ringlet::test {
namespace {

Error error_of_opening(const std::filesystem::path& folder, RunStart start) {
  try {
    RunFolder run(folder, start);
  } catch (const Error& error) {
    return error;
  }
  return Error("none");
}

TEST(RunFolder, KeepsConfigAndMetrics) {
  ScratchFolder scratch;
  const RunFolder run(scratch.path() / "runs" / "a", RunStart::fresh);
  run.write_config("steps = 1\n");
  run.write_config("steps = 2\n");
  EXPECT_EQ(read_text(run.config_path(), 100), "steps = 2\n");
  run.append_metrics(R"({"step": 1})");
  run.append_metrics(R"({"step": 2})");
  EXPECT_EQ(read_text(run.metrics_path(), 100), "{\"step\": 1}\n{\"step\": 2}\n");
  EXPECT_EQ(names_in(run.path()),
            (std::vector<std::string>{"config.toml", "lock", "metrics.jsonl"}));
}

TEST(RunFolder, WhoFollowsTouchesNothing) {
  ScratchFolder scratch;
  EXPECT_FALSE(RunFolder(scratch.path() / "other", RunStart::follow).leads());
  EXPECT_FALSE(std::filesystem::exists(scratch.path() / "other"));
  const RunFolder run(scratch.path(), RunStart::fresh);
  EXPECT_TRUE(run.leads());
  run.append_metrics(R"({"step": 1})");
  RunFolder follower(scratch.path(), RunStart::follow);  // the lock is no hindrance
  EXPECT_EQ(follower.checkpoints(), run.checkpoints());
  EXPECT_THROW(follower.append_metrics("{}"), Error);
  EXPECT_THROW(follower.write_config(""), Error);
  EXPECT_THROW(follower.cut_metrics(0), Error);
  EXPECT_EQ(read_text(run.metrics_path(), 100), "{\"step\": 1}\n");
  EXPECT_EQ(names_in(run.path()), (std::vector<std::string>{"lock", "metrics.jsonl"}));
}

TEST(RunFolder, CutsMetricsAfterAStep) {
  ScratchFolder scratch;
  {
    const RunFolder run(scratch.path(), RunStart::fresh);
    for (int step = 1; step <= 12; ++step) {
      run.append_metrics("{\"loss\": 1.5, \"step\": " + std::to_string(step) + "}");
    }
    run.append_metrics(R"({"event": "no step"})");
  }
  std::ofstream(scratch.path() / "metrics.jsonl", std::ios::app) << "{\"step\": 3, \"lo";  // killed
  RunFolder run(scratch.path(), RunStart::resume);
  run.cut_metrics(2);
  run.append_metrics(R"({"step": 3})");
  EXPECT_EQ(read_text(run.metrics_path(), 1000),
            "{\"loss\": 1.5, \"step\": 1}\n{\"loss\": 1.5, \"step\": 2}\n{\"event\": \"no step\"}\n"
            "{\"step\": 3}\n");
}

TEST(RunFolder, AFreshStartDropsOldMetrics) {
  ScratchFolder scratch;
  RunFolder(scratch.path(), RunStart::fresh).append_metrics(R"({"step": 1})");
  const RunFolder run(scratch.path(), RunStart::fresh);
  EXPECT_EQ(read_text(run.metrics_path(), 100), "");
}

TEST(RunFolder, AFreshStartNeverMeetsCheckpoints) {
  ScratchFolder scratch;
  {
    const RunFolder run(scratch.path(), RunStart::fresh);
    run.append_metrics(R"({"step": 1})");
    save_alone(run.checkpoints(), make_case(1));
  }
  const Error error = error_of_opening(scratch.path(), RunStart::fresh);
  EXPECT_NE(std::string(error.what()).find("already has checkpoints"), std::string::npos);
  EXPECT_NE(error.advice.find("--resume"), std::string::npos);
  EXPECT_NE(error.advice.find("another name"), std::string::npos);
  EXPECT_EQ(read_text(scratch.path() / "metrics.jsonl", 100), "{\"step\": 1}\n") << "untouched";
  EXPECT_STREQ(error_of_opening(scratch.path(), RunStart::resume).what(), "none");
}

TEST(RunFolder, SaysWhyItCannotBeCreated) {
  ScratchFolder scratch;
  std::ofstream(scratch.path() / "file") << "in the way";
  for (const char* name : {"file", "file/run"}) {
    const Error error = error_of_opening(scratch.path() / name, RunStart::fresh);
    EXPECT_NE(std::string(error.what()).find("cannot create"), std::string::npos) << error.what();
    EXPECT_FALSE(error.advice.empty());
  }
}

// The lock belongs to the process and goes with it, even when it is killed.
TEST(RunFolder, OneProcessAtATime) {
  ScratchFolder scratch;
  int ready[2];
  ASSERT_EQ(::pipe(ready), 0);
  const pid_t child = ::fork();
  if (child == 0) {
    const RunFolder run(scratch.path(), RunStart::fresh);
    if (::write(ready[1], "x", 1) == 1) ::pause();
    ::_exit(1);
  }
  char byte = 0;
  ASSERT_EQ(::read(ready[0], &byte, 1), 1);
  const Error error = error_of_opening(scratch.path(), RunStart::resume);
  ::kill(child, SIGKILL);
  ::waitpid(child, nullptr, 0);
  EXPECT_EQ(std::string(error.what()), "another ringlet (pid " + std::to_string(child) +
                                           ") trains in " + scratch.path().string());
  EXPECT_FALSE(error.advice.empty());
  EXPECT_STREQ(error_of_opening(scratch.path(), RunStart::resume).what(), "none");
}

}  // namespace
}  // namespace ringlet::test
