// What a dry run says of a step is what a real step does: bytes of memory and of messages, on every rank.
#include <gtest/gtest.h>

#include "kernels/check.h"
#include "tests/support/training_case.h"
#include "train/plan/dry_run.h"

namespace ringlet::test {
namespace {

/// Every config of the project, its sizes as they are but for a length that trains in a second.
std::vector<Config> project_configs(const std::string& corpus) {
  std::vector<Config> configs;
  for (const auto& entry : std::filesystem::directory_iterator(RINGLET_SOURCE_DIR "/configs")) {
    const std::vector<std::string> overrides{
        "data.corpus=" + corpus, "data.validation=" + corpus, "run.seq_len=333", "run.verify=off",
        "train.steps=2", "train.warmup_steps=0", "train.decay_steps=1", "checkpoint.every=0"};
    configs.push_back(load_config(entry.path(), overrides));
  }
  return configs;
}

TEST(PlanTest, BytesOfMemoryAndMessagesAreThoseOfTrainingOnEveryRank) {
  const TemporaryFolder folder;
  const std::string corpus = make_corpus(folder, 20);
  const std::vector<Config> configs = project_configs(corpus);
  ASSERT_GE(configs.size(), 4u);
  for (Config config : configs) {
    config.data.mask = MaskRule::causal;
    for (const Recompute policy : {Recompute::none, Recompute::selective, Recompute::full}) {
      for (const int64_t ranks : {1, 2, 4, 8}) {
        for (const int64_t ring : {ranks, std::max<int64_t>(1, ranks / 2)}) {
          config.memory.recompute = policy;
          config.run.ranks = ranks;
          config.run.ring = ring;
          config.run.threads_per_rank = 1;
          config.train.batch_windows = 3;  // uneven shares
          const MetricsRecord step = train_case(config).records.back();
          const SequenceLayout layout = make_layout(config.run.layout, config.run.seq_len, int(ring));
          for (int rank = 0; rank < ranks; ++rank) {
            const DryStep dry = DryRank({config, config.gpt(257)}, layout, rank).step();
            const std::string where = config.run.name + ' ' + name_of(policy) + ' ' +
                                      std::to_string(rank) + '/' + std::to_string(ring) + '/' +
                                      std::to_string(ranks);
            EXPECT_EQ(dry.peak_bytes, step.peak_bytes[size_t(rank)]) << where;
            EXPECT_EQ(dry.traffic.bytes(), step.sent_bytes[size_t(rank)]) << where;
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace ringlet::test
