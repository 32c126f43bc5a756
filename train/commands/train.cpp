#include "train/commands/train.h"

#include <fmt/core.h>

#include <functional>
#include <optional>

#include "data/corpus.h"
#include "kernels/cpu/cpu_backend.h"
#include "train/console.h"
#include "train/devices.h"
#include "train/nccl_world.h"
#include "train/plan/prediction.h"
#include "train/rank_process.h"
#include "train/resume.h"
#include "train/signals.h"
#include "train/trainer.h"
#include "train/verify/verify_config.h"
#include "train/world.h"

namespace ringlet {
namespace {

/// The corpora of a run and the windows in them.
struct RunData {
  explicit RunData(const Config& config)
      : corpus(Corpus::open(config.data.corpus)), windows(corpus, config.run.seq_len) {
    if (config.data.validation.empty()) return;
    validation.emplace(Corpus::open(config.data.validation));
    if (validation->tokenizer_hash() != corpus.tokenizer_hash()) {
      throw Error("data.validation '" + validation->path() + "' has another tokenizer (" +
                      validation->tokenizer_name() + ") than data.corpus (" + corpus.tokenizer_name() + ")",
                  "prepare both with the same tokenizer, or with --validation in one go");
    }
    if (config.train.eval_every > 0) validation_windows.emplace(*validation, config.run.seq_len);
  }
  Corpus corpus;
  WindowReader windows;
  std::optional<Corpus> validation;
  std::optional<WindowReader> validation_windows;
};

void say_start(Console& console, const Config& config, const RunData& data, const GptConfig& gpt,
               const Devices& devices) {
  const Config::Run& run = config.run;
  console.say(fmt::format(
      "run {}: {} parameters, {} layers, width {}, heads {}/{} of {}, rope base {:.4g}", run.path().string(),
      human_count(double(parameter_count(gpt))), gpt.layers, gpt.width, gpt.heads.heads,
      gpt.heads.kv_heads, gpt.heads.head_dim, gpt.rope_base));
  console.say(fmt::format(
      "{} tokens a window in {} layout on {} of {} rank{} ({}, {}), {} window{} a step, recompute {}",
      run.seq_len, name_of(run.layout), run.ring_size() == run.ranks ? "one ring" : "rings", run.ring_size(),
      run.ring_size() == 1 ? "" : "s", devices.name(), name_of(gpt.dtype), config.train.batch_windows,
      config.train.batch_windows == 1 ? "" : "s", name_of(config.memory.recompute)));
  console.say(fmt::format("corpus {}: {} tokens in {} documents, {} windows", data.corpus.path(),
                          human_count(double(data.corpus.token_count())),
                          human_count(double(data.corpus.document_count())),
                          data.windows.plan().window_count()));
  if (!run.link.empty()) console.say("between the ranks an emulated link: " + run.link);
  const std::string warning = run.device == DeviceKind::cpu ? cpu_isa_warning() : "";
  if (!warning.empty()) console.say("warning: " + warning);
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
              "lower train.learning_rate or train.clip_norm, then --resume from the last checkpoint");
}

Devices devices_of(const Config::Run& run, const RankProcess& process) {
  const bool one_each = run.comm == CommKind::nccl;
  return Devices(run.device, threads_per_rank(run), CudaAttention::automatic,
                 one_each ? std::optional(process.local_rank) : std::nullopt);
}

RunStart start_of(const RankProcess& process, bool resuming) {
  if (!process.leads()) return RunStart::follow;
  return resuming ? RunStart::resume : RunStart::fresh;
}

void predict(std::optional<Prediction>& prediction, const Config& config, const GptConfig& gpt,
             const Devices& devices, Console& console) {
  try {
    prediction.emplace(config, gpt, devices);
  } catch (const Error& error) {  // trains all the same
    console.say(fmt::format("nothing is predicted: {}; {}", error.what(), error.advice));
  }
}

/// The ranks of this process, to the end of the run.
RunEnd train_ranks(const TrainingRun& run, const RankProcess& process) {
  const Config& config = run.config;
  const SequenceLayout layout =
      make_layout(config.run.layout, config.run.seq_len, int(config.run.ring_size()));
  RunEnd end = RunEnd::finished;
  const RankMain rank_main = [&](RankContext context, Comm& world) {
    Trainer trainer(run, context, world, layout);
    const RunEnd rank_end = trainer.run();
    if (world.rank() == process.rank) end = rank_end;
  };
  if (config.run.comm == CommKind::threads) {
    run_world(config, rank_main);
  } else {
    const int64_t first_step = run.resume != nullptr ? run.resume->info().step : 0;
    run_nccl_rank(config, process, agreement_of(config, run.corpus_fingerprint, first_step), rank_main);
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
  Console console;
  const auto say = [&](const std::string& line) {
    if (process.leads()) console.say(line);
  };
  say_processes(say, configured, config, process);
  const Devices devices = devices_of(config.run, process);
  // First of all: a run whose ring is wrong leaves nothing behind.
  if (config.run.verify != Config::Run::kVerifyOff && process.leads()) {
    say(verify_start(config, real_parts(devices)));
  }
  install_signal_handlers();
  RunFolder folder(config.run.path(), start_of(process, resuming));
  std::optional<Checkpoint> checkpoint;
  if (resuming) checkpoint = checkpoint_to_resume(folder, config, data.corpus, say);
  std::optional<Prediction> prediction;
  if (process.leads()) {
    folder.write_config(to_toml(config));
    say_start(console, config, data, gpt, devices);
    predict(prediction, config, gpt, devices, console);
  }
  const TrainingRun run{config,
                        gpt,
                        data.windows,
                        data.validation_windows ? &*data.validation_windows : nullptr,
                        checkpoint ? &*checkpoint : nullptr,
                        &folder,
                        data.corpus.fingerprint(),
                        data.corpus.tokenizer_name(),
                        data.corpus.tokenizer_hash(),
                        stop_requested,
                        [&](const MetricsRecord& record) {
                          const bool shown = record.step % config.train.log_every == 0 ||
                                             record.step == 1 || record.step == record.steps;
                          if (shown) console.progress(record);
                          if (prediction) prediction->add(record);
                        },
                        say};
  const RunEnd end = train_ranks(run, process);
  if (prediction && !prediction->text().empty()) say(prediction->text());
  return finish(say, end, config);
}

}  // namespace ringlet
