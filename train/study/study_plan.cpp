#include "train/study/study_plan.h"

#include <fmt/format.h>

#include <algorithm>

#include "kernels/check.h"
#include "train/console.h"
#include "train/machine.h"
#include "train/plan/memory_choice.h"
#include "train/plan/plan.h"

namespace ringlet {
namespace {

constexpr int64_t kLargeLength = 4, kLargeTokens = 4;
constexpr int64_t kFewestSteps = 10;

struct StudyCorpora {
  explicit StudyCorpora(const Config& config)
      : training(Corpus::open(config.data.corpus)), validation(opened(config)) {}
  Corpus training, validation;

 private:
  static Corpus opened(const Config& config) {
    if (config.data.validation.empty()) {
      throw UsageError(
          "a study scores its variants on a validation corpus, and data.validation is empty",
          "prepare one with `ringlet prepare --validation 0.1`, and set data.validation");
    }
    return Corpus::open(config.data.validation);
  }
};

int64_t steps_of(const StudyRequest& request, const Config& config) {
  if (request.steps > 0) return request.steps;
  const int64_t step_tokens = config.train.batch_windows * config.run.seq_len;
  if (request.tokens > 0) return (request.tokens + step_tokens - 1) / step_tokens;
  const int64_t fewest = std::min(kFewestSteps, config.train.steps);
  return std::max(fewest, config.train.steps / request.kind->step_divisor) *
         (request.size == StudySize::large ? kLargeTokens : 1);
}

/// The config at the study's length and number of steps.
Config base_config(const StudyRequest& request, std::vector<std::string>& overrides) {
  overrides = request.overrides;
  Config config = load_config(request.config, overrides);
  if (config.run.comm != CommKind::threads) {
    throw UsageError("a study trains its ranks as threads of one process",
                     "set run.comm to \"threads\"");
  }
  if (!config.stages.empty()) {
    throw UsageError(request.config.string() + " has stages, and a study trains variants of one length",
                     "give it a config without [[stage]]");
  }
  const bool large = request.size == StudySize::large;
  // The study of contexts has longer windows of its own.
  if (large && std::string_view(request.kind->name) != "context") {
    overrides.push_back(fmt::format("run.seq_len={}", kLargeLength * config.run.seq_len));
  }
  config = load_config(request.config, overrides);
  const int64_t steps = steps_of(request, config);
  overrides.push_back(fmt::format("train.steps={}", steps));
  overrides.push_back(
      fmt::format("train.warmup_steps={}", std::min(config.train.warmup_steps, steps / 2)));
  return load_config(request.config, overrides);
}

void check_documents(const StudyRequest& request, const StudyCorpora& corpora) {
  if (std::string_view(request.kind->name) != "document-mask") return;
  for (const Corpus* corpus : {&corpora.training, &corpora.validation}) {
    if (corpus->document_count() > 1) continue;
    throw Error(fmt::format("{} holds one document: both masks are the same there", corpus->path()),
                "prepare a folder of files, or JSON lines with a document each; `ringlet inspect` "
                "counts them");
  }
}

/// Settings, and whether it can be: by its config, its corpora and the memory of the machine.
void check_run(PlannedRun& run, const StudyRequest& request, const StudyCorpora& corpora) {
  VariantRun& facts = run.facts;
  facts.variant = run.variant.name;
  facts.seed = run.seed;
  try {
    Config config = config_of(request, run);
    const GptConfig gpt = config.gpt(corpora.training.vocabulary());
    gpt.validate();
    facts.layout = name_of(config.run.layout);
    facts.mask = config.data.mask == MaskRule::document ? "document" : "causal";
    facts.seq_len = double(config.run.seq_len);
    facts.ranks = double(config.run.ranks);
    facts.rope_base = config.model.rope_base;
    facts.steps = double(config.train.steps);
    const WindowPlan windows(corpora.training.document_offsets(), config.run.seq_len);
    if (config.run.device != DeviceKind::cpu) return;
    config = resolved_recompute(config, gpt);
    const double needed = double(peak_bytes({config, gpt, Mask{{0}, config.data.window}})),
                 there = budget_bytes(config);
    if (needed <= there) return;
    throw Error(fmt::format("out of memory: needs {} a rank, {} are there", human_bytes(needed),
                            human_bytes(there)));
  } catch (const Error& error) {
    facts.status = RunStatus::impossible;
    facts.reason = error.what();
  }
}

std::string lines_of(const Variants& variants) {
  std::string text;
  for (const Variant& variant : variants.list) {
    text += variant.name + ':';
    for (const std::string& override : variant.overrides) text += ' ' + override;
    text += '\n';
  }
  return text;
}

StudySettings settings_of(const StudyRequest& request, const Config& base,
                          const StudyCorpora& corpora, const Variants& variants,
                          const EvaluationText& text) {
  Config config = base;
  config.run.name.clear();  // each run has its own
  config.run.folder.clear();
  const Config::Model& model = config.model;
  StudySettings settings{
      {"study", request.kind->name},
      {"config", to_toml(config)},
      {"variants", lines_of(variants)},
      {"reference", variants.list[variants.reference].name},
      {"first_seed", std::to_string(base.run.seed)},
      {"model",
       fmt::format("{} layers, width {}, heads {}/{} of {}, T = {}", model.layers, model.width,
                   model.heads, model.kv_heads, model.head_dim, base.run.seq_len)},
      {"corpus", fmt::format("{}, {}", corpora.training.name(), corpora.training.fingerprint())},
      {"validation",
       fmt::format("{}, {}", corpora.validation.name(), corpora.validation.fingerprint())},
      {"evaluation", fmt::format("{} tokens in blocks of {}", text.tokens(), text.block_tokens)}};
  // Times of two machines cannot be compared; losses can.
  if (std::string_view(request.kind->name) == "ring") {
    settings["machine"] = fmt::format("{}, {} cores", processor_name(), usable_cores());
  }
  return settings;
}

}  // namespace

StudyPlan plan_study(const StudyRequest& request) {
  StudyPlan plan;
  std::vector<std::string> overrides;
  const Config base = base_config(request, overrides);
  const StudyCorpora corpora(base);
  check_documents(request, corpora);
  const Variants variants = request.kind->variants(base, request.size);
  int64_t longest = 1;
  for (int64_t i = 0; i < request.seeds; ++i) {
    const int64_t seed = base.run.seed + i;
    for (const Variant& variant : variants.list) {
      PlannedRun run{variant, seed, overrides, {}};
      run.overrides.insert(run.overrides.end(), variant.overrides.begin(), variant.overrides.end());
      run.overrides.push_back(fmt::format("run.seed={}", seed));
      run.overrides.push_back(fmt::format("run.folder={}", (request.folder / "runs").string()));
      run.overrides.push_back("run.name=" +
                              VariantRun::folder_name(variant.name, seed, base.run.seed));
      check_run(run, request, corpora);
      if (run.facts.status == RunStatus::done)
        longest = std::max(longest, int64_t(run.facts.seq_len));
      plan.runs.push_back(std::move(run));
    }
  }
  if (longest == 1) longest = base.run.seq_len;  // none can be trained, which is said later
  const int64_t trained = base.train.steps * base.train.batch_windows * base.run.seq_len;
  plan.text = evaluation_text(corpora.validation.token_count(), longest, trained);
  plan.settings = settings_of(request, base, corpora, variants, plan.text);
  return plan;
}

Config config_of(const StudyRequest& request, const PlannedRun& run) {
  return load_config(request.config, run.overrides);
}

}  // namespace ringlet
