#include "tests/support/training_case.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <fstream>

#include "kernels/comm/threads.h"
#include "kernels/cpu/file_offload.h"
#include "kernels/host_values.h"
#include "kernels/random.h"
#include "tests/support/bf16.h"
#include "train/commands/prepare.h"
#include "train/world.h"

namespace ringlet::test {
namespace {

namespace fs = std::filesystem;

/// One rank writes its stretches of weights and moments; together the ranks own every element once.
void collect_state(const Trainer& trainer, Backend& device, Trained& result) {
  for (const ShardedAdamW::Segment& segment : trainer.optimizer().segments()) {
    const auto put = [&](const Tensor& part, ValuesByName& all) {
      std::ranges::copy(host_values(device, part),
                        all.at(segment.parameter->name).begin() + segment.first_element);
    };
    put(segment.weights, result.weights);
    put(segment.first_moment, result.first_moments);
    put(segment.second_moment, result.second_moments);
  }
}

}  // namespace

TemporaryFolder::TemporaryFolder() {
  std::string name = (fs::temp_directory_path() / "ringlet-test-XXXXXX").string();
  CHECK(mkdtemp(name.data()) != nullptr, "no temporary folder");
  path_ = name;
}

TemporaryFolder::~TemporaryFolder() {
  std::error_code ignored;
  fs::remove_all(path_, ignored);
}

std::string make_corpus_of(const TemporaryFolder& folder, const std::string& name,
                           const std::vector<std::string>& texts, const std::string& tokenizer,
                           int64_t vocabulary) {
  const fs::path files = folder.path() / (name + "-texts");
  fs::create_directory(files);
  for (size_t i = 0; i < texts.size(); ++i) {
    std::ofstream(files / (std::to_string(1000 + i) + ".txt"), std::ios::binary) << texts[i];
  }
  PrepareOptions options;
  options.input.paths = {files.string()};
  options.output = (folder.path() / (name + ".h5")).string();
  options.tokenizer = tokenizer;
  options.vocabulary = vocabulary;
  prepare(options);
  return options.output;
}

std::string make_corpus(const TemporaryFolder& folder, int documents, const std::string& name) {
  const CounterRandom random(11, hash_name(name));
  const std::vector<std::string> words{"ring ", "of ", "ranks ", "sends ", "keys ", "and ", "values\n"};
  std::vector<std::string> texts(documents);
  for (int i = 0; i < documents; ++i) {
    const int64_t count = int64_t(random.bits(i) % (8000 / documents)) + 5;
    for (int64_t j = 0; j < count; ++j) texts[i] += words[random.bits(1000 * i + j + 7) % words.size()];
  }
  return make_corpus_of(folder, name, texts);
}

Config tiny_training(const std::string& corpus, int64_t ranks, int64_t ring) {
  const std::vector<std::string> settings{
      "data.corpus=" + corpus, "run.name=tiny",       "model.layers=2",
      "model.width=32",        "model.heads=4",       "model.kv_heads=2",
      "model.mlp_width=48",    "run.seq_len=96",      "train.steps=30",
      "train.warmup_steps=4",  "train.batch_windows=2", "train.learning_rate=0.01",
      "memory.head_chunk=20",  "memory.mlp_chunk=28", "checkpoint.every=0",
      "run.ranks=" + std::to_string(ranks), "run.ring=" + std::to_string(ring)};
  return parse_config("", "a test", settings);
}

std::vector<double> Trained::losses() const {
  std::vector<double> values;
  for (const MetricsRecord& record : records) values.push_back(record.loss);
  return values;
}

std::vector<double> Trained::gradient_norms() const {
  std::vector<double> values;
  for (const MetricsRecord& record : records) values.push_back(record.gradient_norm);
  return values;
}

Trained train_case(const Config& config, const TrainingOptions& options) {
  const Corpus corpus = Corpus::open(config.data.corpus);
  const std::vector<StageParts> stages = parts_of_stages(config, corpus, nullptr);
  const GptConfig gpt = stages.front().gpt;
  Trained result;
  for (const ParameterShape& shape : parameter_shapes(gpt)) {
    result.weights[shape.name].resize(shape.size());
    result.first_moments[shape.name].resize(shape.size());
    result.second_moments[shape.name].resize(shape.size());
  }
  std::atomic<bool> stop = false;
  const auto report = [&](const MetricsRecord& record) {
    result.records.push_back(record);
    if (record.step == options.stop_after_step) stop = true;
  };
  const int64_t done = options.resume != nullptr ? options.resume->info().step : 0;
  std::vector<TrainingRun> runs;
  for (int64_t number = stage_at(config, done + 1).number; number <= stage_count(config);
       ++number) {
    const StageParts& stage = stages[size_t(number - 1)];
    runs.push_back({stage.config, stage.gpt, stage.windows, nullptr,
                    runs.empty() ? options.resume : nullptr, options.folder, corpus.fingerprint(),
                    corpus.tokenizer_name(), corpus.tokenizer_hash(), [&] { return stop.load(); },
                    report, [&](const std::string& line) { result.said.push_back(line); },
                    config.stages.empty() ? nullptr : &config, number});
  }
  ThreadsOptions threads;
  threads.ranks = int(config.run.ranks);
  std::vector<ValuesByName> weights(threads.ranks);
  threads.timeout = options.timeout;
  threads.memory = options.memory;
  const Config longest = stage_config(config, chosen_stage(config, 0));
  run_ranks(threads, [&](Comm& all_ranks, Trace& trace) {
    const auto device = options.backend_of(all_ranks.rank())(
        config.memory.arena_bytes > 0 ? config.memory.arena_bytes : int64_t{1} << 32, trace);
    std::unique_ptr<Offload> offload;
    if (!config.memory.offload.empty()) {
      offload =
          make_file_offload(config.memory.offload, offload_bytes(longest, all_ranks.rank()), trace);
    }
    const std::unique_ptr<Comm> own_world = all_ranks.split(0);  // dies before the device
    Comm& world = *own_world;
    const std::unique_ptr<Comm> ring = world.split(world.rank() / int(config.run.ring_size()));
    const auto ended = [&](const TrainingRun&, const Trainer& trainer) {
      collect_state(trainer, *device, result);
      for (const Parameter& parameter : trainer.parameters().all()) {
        weights[world.rank()][parameter.name] = host_values(*device, parameter.weight);
      }
    };
    const RunEnd end = train_stages(runs, {*device, *ring, trace, offload.get()}, world, ended);
    if (world.rank() == 0) result.end = end;
  });
  for (const ValuesByName& of_rank : weights) {
    CHECK(of_rank == weights[0], "the ranks' weights have drifted apart");
  }
  for (const auto& [name, values] : weights[0]) {
    std::vector<float> read_by_model = result.weights.at(name);
    if (gpt.dtype == Dtype::bf16) std::ranges::transform(read_by_model, read_by_model.begin(), round_to_bf16);
    CHECK(values == read_by_model, name, " of the model is not what the optimizer's weights round to");
  }
  return result;
}

Trained train_interrupted(const fs::path& path, const Config& first, const Config& second, int64_t step,
                          const TrainingOptions& on_first, const TrainingOptions& on_second) {
  {
    RunFolder run(path, RunStart::fresh);
    TrainingOptions options = on_first;
    options.folder = &run;
    options.stop_after_step = step;
    CHECK(train_case(first, options).end == RunEnd::interrupted, "the run was not interrupted");
  }
  RunFolder run(path, RunStart::resume);
  std::vector<Skipped> skipped;
  const auto checkpoint = newest_whole_checkpoint(run.checkpoints(), skipped);
  CHECK(checkpoint.has_value(), "nothing was saved");
  TrainingOptions options = on_second;
  options.folder = &run;
  options.resume = &*checkpoint;
  return train_case(second, options);
}

}  // namespace ringlet::test
