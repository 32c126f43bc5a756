// `ringlet train --comm nccl` where it cannot go on: one line of cause, one of advice, nothing left behind.
#include <gtest/gtest.h>

#include <algorithm>

#include "tests/support/program.h"
#include "tests/support/training_case.h"

namespace ringlet::test {
namespace {

namespace fs = std::filesystem;

struct NcclTest : testing::Test {
  TemporaryFolder temporary;
  const fs::path folder = temporary.path();
  const std::string corpus = make_corpus(temporary, 4);

  /// In an environment with these variables and no launcher's.
  ProgramResult train(std::vector<std::string> variables, const std::vector<std::string>& options) {
    write_text(folder / "tiny.toml",
               "[model]\nlayers = 2\nwidth = 32\nheads = 4\n[data]\ncorpus = \"" + corpus +
                   "\"\n[run]\nseq_len = 96\n");
    std::vector<std::string> arguments{"-u", "RANK",     "-u", "OMPI_COMM_WORLD_RANK",
                                       "-u", "PMI_RANK", "-u", "SLURM_PROCID"};
    arguments.insert(arguments.end(), variables.begin(), variables.end());
    arguments.insert(arguments.end(), {RINGLET_PROGRAM, "train", "tiny.toml", "--comm", "nccl"});
    arguments.insert(arguments.end(), options.begin(), options.end());
    return run_program("/usr/bin/env", arguments, folder);
  }

  void expect_refusal(const ProgramResult& result, int exit_code, const std::string& cause) {
    EXPECT_EQ(result.exit_code, exit_code) << result.errors;
    EXPECT_NE(result.errors.find(cause), std::string::npos) << "no '" << cause << "' in: " << result.errors;
    const size_t message = result.errors.rfind("ringlet: ");
    ASSERT_NE(message, std::string::npos) << result.errors;
    EXPECT_EQ(std::ranges::count(result.errors.substr(message), '\n'), 2) << result.errors;
    EXPECT_FALSE(fs::exists(folder / "runs"));
  }
};

TEST_F(NcclTest, ConfigsThatAreNotForIt) {
  expect_refusal(train({}, {}), 2, "needs run.device = \"cuda\"");
  expect_refusal(train({}, {"--device", "cuda", "--link", "nvlink4"}), 2, "run.link");
  expect_refusal(train({}, {"--device", "cuda", "--set", "run.address=node1"}), 2, "not host:port");
}

TEST_F(NcclTest, LaunchersThatTellTooLittle) {
  expect_refusal(train({"RANK=1", "WORLD_SIZE=2"}, {"--device", "cuda"}), 2, "LOCAL_RANK");
  expect_refusal(train({"RANK=2", "WORLD_SIZE=2", "LOCAL_RANK=0"}, {"--device", "cuda"}), 2, "RANK=2");
  expect_refusal(train({"RANK=1", "WORLD_SIZE=2", "LOCAL_RANK=1", "MASTER_ADDR="}, {"--device", "cuda"}), 2,
                 "where rank 0 listens");
}

TEST_F(NcclTest, NoCuda) {
  if (fs::exists(fs::path(RINGLET_PROGRAM).parent_path() / "libringlet_cuda.so")) {
    GTEST_SKIP() << "the CUDA module was built";
  }
  expect_refusal(train({}, {"--device", "cuda"}), 1, "no CUDA");
  for (const char* rank : {"RANK=0", "RANK=1"}) {
    expect_refusal(train({rank, "WORLD_SIZE=2", "LOCAL_RANK=0"},
                         {"--device", "cuda", "--set", "run.address=127.0.0.1:29401"}),
                   1, "no CUDA");
  }
}

}  // namespace
}  // namespace ringlet::test
