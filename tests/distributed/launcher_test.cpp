// Which variables of the environment make a launcher.
#include "kernels/comm/launcher.h"

#include <gmock/gmock.h>

#include <map>

#include "kernels/check.h"

namespace ringlet::test {
namespace {

using Variables = std::map<std::string, std::string>;

std::optional<Launch> launch_of(const Variables& variables) {
  return find_launch([&](const char* name) -> const char* {
    const auto found = variables.find(name);
    return found == variables.end() ? nullptr : found->second.c_str();
  });
}

void expect_launch(const Variables& variables, const Launch& expected) {
  const std::optional<Launch> launch = launch_of(variables);
  ASSERT_TRUE(launch.has_value());
  EXPECT_EQ(launch->launcher, expected.launcher);
  EXPECT_EQ(launch->rank, expected.rank);
  EXPECT_EQ(launch->size, expected.size);
  EXPECT_EQ(launch->local_rank, expected.local_rank);
  EXPECT_EQ(launch->address, expected.address);
}

std::string refusal(const Variables& variables) {
  try {
    launch_of(variables);
    return "";
  } catch (const UsageError& error) {
    return error.what();
  }
}

const Variables kTorchrun{{"RANK", "5"},          {"WORLD_SIZE", "8"},       {"LOCAL_RANK", "1"},
                          {"MASTER_ADDR", "node1"}, {"MASTER_PORT", "29500"}};

TEST(Launcher, NothingSetIsNoLauncher) { EXPECT_FALSE(launch_of({}).has_value()); }

TEST(Launcher, Torchrun) { expect_launch(kTorchrun, {"torchrun", 5, 8, 1, "node1:29500"}); }

TEST(Launcher, TorchrunsOwnStoreHasThePortThatItTells) {
  Variables variables = kTorchrun;
  variables["TORCHELASTIC_USE_AGENT_STORE"] = "True";
  expect_launch(variables, {"torchrun", 5, 8, 1, "node1:29501"});
  variables["MASTER_PORT"] = "65535";
  expect_launch(variables, {"torchrun", 5, 8, 1, "node1:65534"});
  variables["TORCHELASTIC_USE_AGENT_STORE"] = "False";
  expect_launch(variables, {"torchrun", 5, 8, 1, "node1:65535"});
}

TEST(Launcher, OpenMpiOnOneMachine) {
  expect_launch({{"OMPI_COMM_WORLD_RANK", "2"},
                 {"OMPI_COMM_WORLD_SIZE", "4"},
                 {"OMPI_COMM_WORLD_LOCAL_RANK", "2"},
                 {"OMPI_COMM_WORLD_LOCAL_SIZE", "4"}},
                {"mpirun", 2, 4, 2, "127.0.0.1:29400"});
}

TEST(Launcher, OpenMpiOnTwoMachinesDoesNotKnowTheAddress) {
  expect_launch({{"OMPI_COMM_WORLD_RANK", "5"},
                 {"OMPI_COMM_WORLD_SIZE", "8"},
                 {"OMPI_COMM_WORLD_LOCAL_RANK", "1"},
                 {"OMPI_COMM_WORLD_LOCAL_SIZE", "4"}},
                {"mpirun", 5, 8, 1, ""});
}

TEST(Launcher, Mpich) {
  expect_launch({{"PMI_RANK", "1"}, {"PMI_SIZE", "2"}, {"MPI_LOCALRANKID", "1"}, {"MPI_LOCALNRANKS", "2"}},
                {"mpirun", 1, 2, 1, "127.0.0.1:29400"});
}

const Variables kSrun{{"SLURM_PROCID", "3"},  {"SLURM_STEP_NUM_TASKS", "4"},   {"SLURM_LOCALID", "1"},
                      {"SLURM_JOB_ID", "18007"}, {"SLURM_STEP_NODELIST", "gpu[07-08]"}};

TEST(Launcher, Srun) { expect_launch(kSrun, {"srun", 3, 4, 1, "gpu07:20007"}); }

TEST(Launcher, AnAddressThatIsSetGoesBeforeTheJobs) {
  Variables variables = kSrun;
  variables["MASTER_ADDR"] = "10.0.0.1";
  variables["MASTER_PORT"] = "1234";
  expect_launch(variables, {"srun", 3, 4, 1, "10.0.0.1:1234"});
}

TEST(Launcher, ABatchScriptIsNoStepOfTasks) {
  EXPECT_FALSE(launch_of({{"SLURM_PROCID", "0"}, {"SLURM_NTASKS", "4"}, {"SLURM_LOCALID", "0"}}).has_value());
}

TEST(Launcher, MpirunInsideOfAStepGoesFirst) {
  Variables variables = kSrun;
  variables.insert({{"OMPI_COMM_WORLD_RANK", "1"}, {"OMPI_COMM_WORLD_SIZE", "2"}, {"OMPI_COMM_WORLD_LOCAL_RANK", "0"}});
  expect_launch(variables, {"mpirun", 1, 2, 0, ""});
}

TEST(Launcher, NamesTheVariableThatIsWrong) {
  for (const auto& [name, value] : Variables{{"RANK", "8"}, {"WORLD_SIZE", "0"}, {"LOCAL_RANK", "x"}, {"RANK", "-1"},
                                             {"MASTER_PORT", "65536"}, {"RANK", "1 "}}) {
    Variables variables = kTorchrun;
    variables[name] = value;
    EXPECT_THAT(refusal(variables), testing::HasSubstr(name + "=" + value));
  }
  Variables variables = kTorchrun;
  variables.erase("LOCAL_RANK");
  EXPECT_THAT(refusal(variables), testing::HasSubstr("LOCAL_RANK"));
}

TEST(Launcher, FirstNodeOfAList) {
  EXPECT_EQ(first_node("alone"), "alone");
  EXPECT_EQ(first_node("a1,b2"), "a1");
  EXPECT_EQ(first_node("node[07-09,12],other"), "node07");
  EXPECT_EQ(first_node("node[3,5]"), "node3");
  EXPECT_EQ(first_node("rack[1-2]-gpu,x"), "rack1-gpu");
}

}  // namespace
}  // namespace ringlet::test
