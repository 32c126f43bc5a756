#include "train/commands/train.h"

#include <fmt/core.h>

#include <optional>

#include "data/corpus.h"
#include "kernels/cpu/cpu_backend.h"
#include "train/console.h"
#include "train/devices.h"
#include "train/plan/prediction.h"
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

int finish(Console& console, RunEnd end, const Config& config) {
  const std::string folder = config.run.path().string();
  switch (end) {
    case RunEnd::finished:
      console.say("done: " + folder + " holds config.toml, metrics.jsonl and checkpoints/");
      return 0;
    case RunEnd::interrupted:
      console.say("stopped as asked; continue with --resume");
      return 0;
    case RunEnd::diverged:
      break;
  }
  throw Error(fmt::format("{} steps in a row had a loss or gradient that is not finite; nothing was saved",
                          config.train.max_skipped_steps),
              "lower train.learning_rate or train.clip_norm, then --resume from the last checkpoint");
}

}  // namespace

int train(const TrainOptions& options) {
  Config config = load_config(options.config, options.overrides);
  const RunData data(config);
  const GptConfig gpt = config.gpt(data.corpus.vocabulary());
  gpt.validate();
  const bool resuming = options.resume == ResumeChoice::newest;
  config = resolved_recompute(resuming ? with_earlier_memory(config, gpt) : config, gpt);
  Console console;
  const Devices devices(config.run.device, threads_per_rank(config.run));
  // First of all: a run whose ring is wrong leaves nothing behind.
  if (config.run.verify != Config::Run::kVerifyOff) {
    console.say(verify_start(config, real_parts(devices)));
  }
  install_signal_handlers();
  RunFolder folder(config.run.path(), resuming ? RunStart::resume : RunStart::fresh);
  std::optional<Checkpoint> checkpoint;
  if (resuming) {
    checkpoint = checkpoint_to_resume(folder, config, data.corpus,
                                      [&](const std::string& line) { console.say(line); });
  }
  folder.write_config(to_toml(config));
  say_start(console, config, data, gpt, devices);

  std::optional<Prediction> prediction;
  try {
    prediction.emplace(config, gpt);
  } catch (const Error& error) {  // trains all the same
    console.say(fmt::format("nothing is predicted: {}; {}", error.what(), error.advice));
  }
  const SequenceLayout layout =
      make_layout(config.run.layout, config.run.seq_len, int(config.run.ring_size()));
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
                        [&](const std::string& line) { console.say(line); }};
  RunEnd end = RunEnd::finished;
  run_world(config, [&](RankContext context, Comm& world) {
    Trainer trainer(run, context, world, layout);
    const RunEnd rank_end = trainer.run();
    if (world.rank() == 0) end = rank_end;
  });
  if (prediction && !prediction->text().empty()) console.say(prediction->text());
  return finish(console, end, config);
}

}  // namespace ringlet
