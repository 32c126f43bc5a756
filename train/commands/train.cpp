#include "train/commands/train.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <functional>
#include <optional>
#include <set>

#include "data/corpus.h"
#include "train/console.h"
#include "train/devices.h"
#include "train/machine.h"
#include "train/nccl_world.h"
#include "train/plan/memory_choice.h"
#include "train/plan/prediction.h"
#include "train/rank_process.h"
#include "train/resume.h"
#include "train/signals.h"
#include "train/stage_training.h"
#include "train/verify/verify_config.h"
#include "train/world.h"

namespace ringlet {
namespace {

/// The corpora of a run.
struct RunData {
  explicit RunData(const Config& config) : corpus(Corpus::open(config.data.corpus)) {
    if (config.data.validation.empty()) return;
    validation.emplace(Corpus::open(config.data.validation));
    if (validation->tokenizer_hash() != corpus.tokenizer_hash()) {
      throw Error("data.validation '" + validation->path() + "' has another tokenizer (" +
                      validation->tokenizer_name() + ") than data.corpus (" + corpus.tokenizer_name() + ")",
                  "prepare both with the same tokenizer, or with --validation in one go");
    }
  }
  Corpus corpus;
  std::optional<Corpus> validation;
};

/// "4096 tokens a window", "1 window a step", "recompute none": of the stages in turn where these
/// differ.
std::string over_stages(const std::vector<StageParts>& stages,
                        const std::function<std::string(const Config&)>& text) {
  std::vector<std::string> texts;
  for (const StageParts& stage : stages) texts.push_back(text(stage.config));
  texts.erase(std::ranges::unique(texts).begin(), texts.end());
  return fmt::format("{}", fmt::join(texts, ", then "));
}

/// Where only answers count, and what windows of that length do to them.
void say_answers(Console& console, const RunData& data, int64_t seq_len) {
  const Corpus& corpus = data.corpus;
  const auto answers = corpus.answers();
  if (data.validation && answers.empty() != data.validation->answers().empty()) {
    console.say(fmt::format("warning: only {} has answers: evaluation scores other tokens than training",
                            answers.empty() ? "data.validation" : "data.corpus"));
  }
  if (answers.empty()) return;
  console.say(fmt::format("only its {} answer tokens are trained and scored", answers.size()));
  const auto offsets = corpus.document_offsets();
  const auto cut = std::ranges::adjacent_find(
      offsets, [&](int64_t start, int64_t end) { return end - start > seq_len; });
  if (cut == offsets.end()) return;
  console.say(fmt::format("warning: windows of {} tokens cut documents of {}: answers may lose what they are "
                          "looked up in",
                          seq_len, cut[1] - cut[0]));
}

void say_start(Console& console, const Config& config, const RunData& data,
               const std::vector<StageParts>& stages, const Devices& devices) {
  const Config::Run& run = config.run;
  const GptConfig& gpt = stages.front().gpt;
  console.say(fmt::format(
      "run {}: {} parameters, {} layers, width {}, heads {}/{} of {}, rope base {}",
      run.path().string(), human_count(double(parameter_count(gpt))), gpt.layers, gpt.width,
      gpt.heads.heads, gpt.heads.kv_heads, gpt.heads.head_dim,
      over_stages(stages,
                  [](const Config& one) { return fmt::format("{:.4g}", one.model.rope_base); })));
  console.say(fmt::format(
      "{} tokens a window in {} layout on {} of {} rank{} ({}, {}), {} a step, recompute {}, ZeRO-{}",
      over_stages(stages, [](const Config& one) { return fmt::format("{}", one.run.seq_len); }),
      name_of(run.layout), run.ring_size() == run.ranks ? "one ring" : "rings", run.ring_size(),
      run.ring_size() == 1 ? "" : "s", devices.name(), name_of(gpt.dtype),
      over_stages(stages,
                  [](const Config& one) {
                    return fmt::format("{} window{}", one.train.batch_windows,
                                       one.train.batch_windows == 1 ? "" : "s");
                  }),
      over_stages(stages,
                  [](const Config& one) { return std::string(name_of(one.memory.recompute)); }),
      config.memory.zero_stage));
  std::vector<int64_t> windows;
  for (const StageParts& stage : stages) windows.push_back(stage.windows.plan().window_count());
  console.say(fmt::format("corpus {}: {} tokens in {} document{}, {} windows", data.corpus.path(),
                          human_count(double(data.corpus.token_count())),
                          human_count(double(data.corpus.document_count())),
                          data.corpus.document_count() == 1 ? "" : "s",
                          fmt::join(windows, ", then ")));
  int64_t shortest = stages.front().config.run.seq_len;
  for (const StageParts& stage : stages) shortest = std::min(shortest, stage.config.run.seq_len);
  say_answers(console, data, shortest);
  if (!run.link.empty()) console.say("between the ranks an emulated link: " + run.link);
}

using Say = std::function<void(const std::string& line)>;

/// Where ranks are processes: how they meet, and whether there are as many as the config says.
void say_processes(const Say& say, const Config& configured, const Config& config,
                   const RankProcess& process) {
  if (config.run.comm == CommKind::threads) return;
  say(describe(process));
  if (configured.run.ranks == config.run.ranks) return;
  say(fmt::format("run.ranks = {}: as many as there are processes, not {}", config.run.ranks,
                  configured.run.ranks));
}

int finish(const Say& say, RunEnd end, const Config& config) {
  const std::string folder = config.run.path().string();
  switch (end) {
    case RunEnd::finished:
      say("done: " + folder + " holds config.toml, metrics.jsonl and checkpoints/");
      return 0;
    case RunEnd::interrupted:
      say("stopped as asked; continue with --resume");
      return 0;
    case RunEnd::diverged:
      break;
  }
  throw Error(fmt::format("{} steps in a row had a loss or gradient that is not finite; nothing was saved",
                          config.train.max_skipped_steps),
              fmt::format("lower train.learning_rate{}, then {}",
                          config.train.clip_norm > 0 ? " or train.clip_norm" : " or set train.clip_norm",
                          has_checkpoints(config.run.path() / "checkpoints") ? "--resume from the last checkpoint"
                                                                             : "train anew"));
}

Devices devices_of(const Config::Run& run, const RankProcess& process) {
  const bool one_each = run.comm == CommKind::nccl;
  return Devices(run.device, host_threads(run), CudaAttention::automatic,
                 one_each ? std::optional(process.local_rank) : std::nullopt);
}

RunStart start_of(const RankProcess& process, bool resuming) {
  if (!process.leads()) return RunStart::follow;
  return resuming ? RunStart::resume : RunStart::fresh;
}

/// Of the arena, by a rank.
int64_t planned_bytes(const StageParts& stage) {
  return peak_bytes({stage.config, stage.gpt, Mask{{0}, stage.config.data.window}});
}

/// The longest stage comes last as a rule: that it does not fit must not be found out then.
void check_memory(const std::vector<StageParts>& stages, int64_t first_stage, const Devices& devices,
                  const RankProcess& process) {
  if (stages.size() == 1) return;
  for (size_t i = size_t(first_stage - 1); i < stages.size(); ++i) {
    const Config& config = stages[i].config;
    const bool alone = config.run.comm == CommKind::nccl;
    int64_t bytes =
        devices.share_bytes(alone ? 0 : process.rank, alone ? 1 : int(config.run.ranks));
    if (config.memory.arena_bytes > 0) bytes = std::min(bytes, config.memory.arena_bytes);
    const int64_t needed = planned_bytes(stages[i]);
    if (needed <= bytes) continue;
    throw Error(
        fmt::format("stage {} (T = {}) needs {} a rank, and there are {}", i + 1,
                    config.run.seq_len, human_bytes(double(needed)), human_bytes(double(bytes))),
        fmt::format("more ranks on the ring, or memory.recompute = \"auto\"; `ringlet plan CONFIG "
                    "--stage {}` "
                    "tells what each setting buys",
                    i + 1));
  }
}

/// Bytes of the arena that each rank has to the end of the run: on a GPU what the plan says that its stages need, if
/// steps are not verified (how much that takes is not planned). 0: the rank's share.
int64_t arena_bytes_of(const Config& config, const std::vector<StageParts>& stages, int64_t first_stage) {
  const bool is_planned = config.run.verify <= Config::Run::kVerifyStart;  // else: every so many steps
  if (config.run.device != DeviceKind::cuda || config.memory.arena_bytes > 0 || !is_planned)
    return config.memory.arena_bytes;
  int64_t bytes = 0;
  for (size_t i = size_t(first_stage - 1); i < stages.size(); ++i) bytes = std::max(bytes, planned_bytes(stages[i]));
  return bytes;
}

/// Of each stage from the first that is trained on; absent where nothing could be predicted.
using Predictions = std::vector<std::optional<Prediction>>;

Predictions predict(const std::vector<StageParts>& stages, int64_t first_stage,
                    const Devices& devices, int64_t arena_bytes, Console& console) {
  Predictions predictions(stages.size());
  int64_t process_bytes = 0;
  // What NCCL takes of a GPU beside the arenas nobody has measured.
  if (stages.front().config.run.comm == CommKind::nccl) arena_bytes = 0;
  for (size_t i = size_t(first_stage - 1); i < stages.size(); ++i) {
    try {
      predictions[i].emplace(stages[i].config, stages[i].gpt, devices, process_bytes, arena_bytes);
      process_bytes = predictions[i]->process_bytes();
    } catch (const Error& error) {  // trains all the same
      console.say(fmt::format("nothing is predicted: {}; {}", error.what(), error.advice));
    }
  }
  return predictions;
}

void say_prediction(const Predictions& predictions, int64_t stage, const Say& say) {
  const std::optional<Prediction>& prediction = predictions[size_t(stage - 1)];
  std::string text;
  try {
    if (prediction) text = prediction->text();
  } catch (const Error& error) {  // the training is done and saved all the same
    text = fmt::format("nothing was measured beside what was predicted: {}", error.what());
  }
  if (!text.empty()) say(predictions.size() > 1 ? fmt::format("stage {}: {}", stage, text) : text);
}

/// The stages from the one that trains the next step; `common` has what all of them share.
std::vector<TrainingRun> runs_of(const Config& config, const std::vector<StageParts>& stages,
                                 int64_t first_stage, const Checkpoint* resume,
                                 const std::function<TrainingRun(const StageParts&)>& common) {
  std::vector<TrainingRun> runs;
  for (int64_t number = first_stage; number <= std::ssize(stages); ++number) {
    TrainingRun& run = runs.emplace_back(common(stages[size_t(number - 1)]));
    run.resume = number == first_stage ? resume : nullptr;
    run.whole = config.stages.empty() ? nullptr : &config;
    run.stage = number;
  }
  return runs;
}

/// Verifies each policy that a stage runs with; the kernels and the ring are the same in all of
/// them.
void verify_stages(const std::vector<StageParts>& stages, const Devices& devices, const Say& say) {
  std::set<Recompute> verified;
  for (const StageParts& stage : stages) {
    if (!verified.insert(stage.config.memory.recompute).second) continue;
    say(verify_start(stage.config, real_parts(devices)));
  }
}

/// The ranks of this process, to the end of the run.
RunEnd train_ranks(const Config& config, int64_t arena_bytes, std::span<const TrainingRun> stages,
                   const RankProcess& process, const Predictions& predictions) {
  RunEnd end = RunEnd::finished;
  const RankMain rank_main = [&](RankContext context, Comm& world) {
    const RunEnd rank_end =
        train_stages(stages, context, world, [&](const TrainingRun& stage, const Trainer&) {
          if (world.rank() == 0) say_prediction(predictions, stage.stage, stage.say);
        });
    if (world.rank() == process.rank) end = rank_end;
    world.barrier();  // threads too hold their memory until rank 0 has said how much it is
  };
  // Made once for all stages, with room for the longest of them.
  Config world = stage_config(config, chosen_stage(config, 0));
  world.memory.arena_bytes = arena_bytes;
  if (config.run.comm == CommKind::threads) {
    run_world(world, rank_main);
  } else {
    const TrainingRun& first = stages.front();
    const int64_t first_step = first.resume != nullptr ? first.resume->info().step : 0;
    run_nccl_rank(world, process, agreement_of(config, first.corpus_fingerprint, first_step),
                  rank_main);
  }
  return end;
}

}  // namespace

int train(const TrainOptions& options) {
  const Config configured = load_config(options.config, options.overrides);
  const RankProcess process = find_process(configured);
  Config config = with_process_count(configured, process);
  const RunData data(config);
  const GptConfig gpt = config.gpt(data.corpus.vocabulary());
  gpt.validate();
  const bool resuming = options.resume == ResumeChoice::newest;
  config = resolved_recompute(resuming ? with_earlier_memory(config, gpt) : config, gpt);
  const std::vector<StageParts> stages =
      parts_of_stages(config, data.corpus, data.validation ? &*data.validation : nullptr);
  Console console;
  const auto say = [&](const std::string& line) {
    if (process.leads()) console.say(line);
  };
  say_processes(say, configured, config, process);
  const Devices devices = devices_of(config.run, process);
  if (!resuming) check_memory(stages, 1, devices, process);
  // First of all: a run whose ring is wrong leaves nothing behind.
  if (config.run.verify != Config::Run::kVerifyOff && process.leads())
    verify_stages(stages, devices, say);
  install_signal_handlers();
  RunFolder folder(config.run.path(), start_of(process, resuming));
  std::optional<Checkpoint> checkpoint;
  if (resuming) checkpoint = checkpoint_to_resume(folder, config, data.corpus, say);
  if (checkpoint && checkpoint->info().step >= config.train.steps) {
    say(fmt::format("step {} of {} is done: nothing is left to train", checkpoint->info().step, config.train.steps));
  }
  const int64_t first_stage = stage_at(config, checkpoint ? checkpoint->info().step + 1 : 1).number;
  if (resuming) check_memory(stages, first_stage, devices, process);
  const int64_t arena_bytes = arena_bytes_of(config, stages, first_stage);
  Predictions predictions(stages.size());
  if (process.leads()) {
    folder.write_config(to_toml(config));
    say_start(console, config, data, stages, devices);
    predictions = predict(stages, first_stage, devices, arena_bytes, console);
  }
  release_free_memory();  // of verification and dry runs
  const auto report = [&](const MetricsRecord& record) {
    const bool shown = record.step % config.train.log_every == 0 || record.step == 1 ||
                       record.step == record.steps;
    if (shown) console.progress(record);
    if (auto& prediction = predictions[size_t(std::max<int64_t>(1, record.stage) - 1)])
      prediction->add(record);
  };
  const auto common = [&](const StageParts& stage) {
    return TrainingRun{stage.config,
                       stage.gpt,
                       stage.windows,
                       stage.validation ? &*stage.validation : nullptr,
                       nullptr,
                       &folder,
                       data.corpus.fingerprint(),
                       data.corpus.tokenizer_name(),
                       data.corpus.tokenizer_hash(),
                       stop_requested,
                       report,
                       say};
  };
  const std::vector<TrainingRun> runs =
      runs_of(config, stages, first_stage, checkpoint ? &*checkpoint : nullptr, common);
  const RunEnd end = train_ranks(config, arena_bytes, runs, process, predictions);
  return finish(say, end, config);
}

}  // namespace ringlet
