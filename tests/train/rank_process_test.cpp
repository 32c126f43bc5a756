// Which process of a run this one is, and what all of them have to agree on.
#include "train/rank_process.h"

#include <gmock/gmock.h>

#include <map>

#include "kernels/check.h"
#include "train/nccl_world.h"

namespace ringlet::test {
namespace {

using testing::HasSubstr;
using Variables = std::map<std::string, std::string>;

const Variables kTorchrun{{"RANK", "5"},            {"WORLD_SIZE", "8"},      {"LOCAL_RANK", "1"},
                          {"MASTER_ADDR", "node1"}, {"MASTER_PORT", "29500"}};
constexpr const char* kNccl = "[run]\ndevice = 'cuda'\ncomm = 'nccl'\n";

Config config_of(const std::string& more = "") { return parse_config(kNccl + more, "test"); }

RankProcess process_of(const Config& config, const Variables& variables) {
  return find_process(config, [&](const char* name) -> const char* {
    const auto found = variables.find(name);
    return found == variables.end() ? nullptr : found->second.c_str();
  });
}

void expect_refused(const Config& config, const Variables& variables, const std::string& cause) {
  try {
    process_of(config, variables);
    ADD_FAILURE() << "not refused: " << cause;
  } catch (const UsageError& error) {
    EXPECT_THAT(error.what(), HasSubstr(cause));
    EXPECT_NE(error.advice, "");
  }
}

TEST(RankProcess, ThreadsAreAllInOneProcessWhateverTheLauncher) {
  const Config config = parse_config("[run]\nranks = 4", "test");
  const RankProcess process = process_of(config, kTorchrun);
  EXPECT_TRUE(process.leads());
  EXPECT_EQ(process.size, 1);
  EXPECT_EQ(with_process_count(config, process).run.ranks, 4);
}

TEST(RankProcess, TheLauncherTellsTheRank) {
  const RankProcess process = process_of(config_of(), kTorchrun);
  EXPECT_EQ(process.rank, 5);
  EXPECT_EQ(process.size, 8);
  EXPECT_EQ(process.local_rank, 1);
  EXPECT_EQ(process.address, "node1:29500");
  EXPECT_FALSE(process.leads());
  EXPECT_EQ(with_process_count(config_of(), process).run.ranks, 8);
  EXPECT_EQ(describe(process), "NCCL: rank 5 of 8 processes (torchrun), which meet at node1:29500");
}

TEST(RankProcess, WithoutALauncherItIsAlone) {
  const Config config = config_of("ranks = 4");
  const RankProcess process = process_of(config, {});
  EXPECT_TRUE(process.leads());
  EXPECT_EQ(with_process_count(config, process).run.ranks, 1);
}

TEST(RankProcess, TheConfigsAddressGoesFirst) {
  EXPECT_EQ(process_of(config_of("address = 'other:1234'"), kTorchrun).address, "other:1234");
}

TEST(RankProcess, RefusesWhatCannotBe) {
  Variables variables = kTorchrun;
  variables.erase("LOCAL_RANK");
  expect_refused(config_of(), variables, "LOCAL_RANK");
  variables = kTorchrun;
  variables["RANK"] = "8";
  expect_refused(config_of(), variables, "RANK=8");
  variables = kTorchrun;
  variables.erase("MASTER_ADDR");
  expect_refused(config_of(), variables, "nobody tells rank 5 of 8");
  expect_refused(parse_config("[run]\ncomm = 'nccl'", "test"), kTorchrun, "run.device");
  expect_refused(config_of("link = 'nvlink4'"), kTorchrun, "run.link");
}

TEST(RankProcess, ARingMustDivideTheProcesses) {
  const Config config = config_of("ranks = 6\nring = 3");
  EXPECT_THROW(with_process_count(config, process_of(config, kTorchrun)), UsageError);
}

TEST(RankProcess, AnAddressIsHostAndPort) {
  for (const char* address : {"node1", ":29400", "node1:"}) {
    EXPECT_THROW(config_of(std::string("address = '") + address + "'"), UsageError) << address;
  }
  EXPECT_EQ(config_of("address = '[::1]:29400'").run.address, "[::1]:29400");
}

std::string disagreement(const std::string& own, const std::string& of_rank_0) {
  try {
    check_agreement(3, own, of_rank_0);
    return "";
  } catch (const Error& error) {
    EXPECT_NE(error.advice, "");
    return error.what();
  }
}

TEST(Agreement, NamesTheFirstDifference) {
  const Config config = config_of();
  Config other = config;
  other.train.steps = 7;
  const std::string whole = agreement_of(config, "abc", 25);
  EXPECT_EQ(disagreement(whole, whole), "");
  EXPECT_EQ(disagreement(agreement_of(other, "abc", 25), whole),
            "rank 3 has [train] steps = 7 where rank 0 has steps = 1000");
  const Config in_stages = parse_config("[[stage]]\ntokens = 9", "test"),
               longer = parse_config("[[stage]]\ntokens = 10", "test");
  EXPECT_EQ(disagreement(agreement_of(longer, "abc", 25), agreement_of(in_stages, "abc", 25)),
            "rank 3 has [[stage]] tokens = 10 where rank 0 has tokens = 9");
  EXPECT_EQ(disagreement(whole, agreement_of(config, "abc", 50)),
            "rank 3 has [start] step = 25 where rank 0 has step = 50");
  EXPECT_THAT(disagreement(whole, agreement_of(config, "abd", 25)), HasSubstr("corpus = abc"));
  EXPECT_THAT(disagreement(whole, ""), HasSubstr("rank 3 has"));
  EXPECT_THAT(disagreement("", whole), HasSubstr("rank 0 has"));
}

}  // namespace
}  // namespace ringlet::test
