#include "train/commands/plan.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <nlohmann/json.hpp>
#include <optional>

#include "train/console.h"
#include "train/devices.h"
#include "train/plan/calibration.h"
#include "train/plan/corpus_windows.h"
#include "train/plan/device_profiles.h"
#include "train/plan/memory_choice.h"
#include "train/plan/paper.h"
#include "train/plan/plan_text.h"
#include "train/plan/stage_needs.h"
#include "train/plan/tune.h"
#include "train/stages.h"
#include "train/units.h"
#include "train/world.h"

namespace ringlet {
namespace {

Devices devices_here(const Config& config) {
  try {
    return Devices(config.run.device, host_threads(config.run));
  } catch (const Error& error) {  // GPUs of another machine can be planned for
    throw Error(error.what(), "name the GPU that you plan for: --device h200, h100 or a100");
  }
}

std::optional<Rates> rates_for(const PlanOptions& options, const Config& config, const GptConfig& gpt) {
  const std::string& text = options.link.empty() ? config.run.link : options.link;
  std::optional<Link> link;
  if (!text.empty()) link = parse_link(text);
  if (options.calibrate && options.device != "this") {
    throw UsageError(fmt::format("--calibrate measures this machine, not \"{}\"", options.device),
                     "leave --device out, or --calibrate");
  }
  std::optional<Rates> rates;
  if (options.device != "this") {
    rates = rates_of_device(options.device);
  } else {
    const Devices devices = devices_here(config);
    if (options.calibrate) save_rates(calibrate(config, gpt, devices));
    rates = load_rates(devices.rates_name(gpt.dtype));
  }
  if (rates && link) rates->link = *link;
  return rates;
}

/// Threads of a rank, and the cores or GPUs that all share; a machine that is only planned has one for each rank: 0.
struct Workers {
  int threads_per_rank = 1, count = 0;
};
Workers workers_of(const PlanOptions& options, const Config& config) {
  if (options.device != "this") return {};
  const Devices devices = devices_here(config);
  return {devices.threads_per_rank(), devices.worker_count()};
}

double budget_of(const PlanOptions& options, const Config& config, const std::optional<Rates>& rates) {
  if (!options.budget.empty()) return parse_bytes(options.budget);
  if (rates && rates->memory_bytes > 0) return rates->memory_bytes;
  return budget_bytes(config);
}

/// What no knob makes smaller.
int64_t fixed_bytes(const DryStep& step) {
  int64_t bytes = 0;
  for (const Arena::Region& region : step.regions) {
    const std::string_view name = region.name;
    if (name == "weights" || name == "master weights" || name == "gradients" || name == "optimizer") bytes += region.bytes;
  }
  return bytes;
}

void check_budget(const DryRun& run, const Plan& plan, double budget_bytes) {
  if (budget_bytes >= double(fixed_bytes(plan.fullest()))) return;
  Config smallest = run.config;
  smallest.memory = smallest_memory(run);
  const int64_t fixed = fixed_bytes(make_plan({smallest, run.gpt, run.mask}).fullest());
  if (budget_bytes >= double(fixed)) return;
  throw Error(fmt::format("a budget of {} a rank is below the weights, their gradients and moments: {}",
                          human_bytes(budget_bytes), human_bytes(double(fixed))),
              fmt::format("give at least {} a rank, or make the model smaller", human_bytes(double(fixed))));
}

/// stage: 0 where the config has none.
std::vector<std::string> memory_changes(const Config& config, const Config::Memory& memory,
                                        int64_t stage) {
  Config changed = config;
  changed.memory = memory;
  std::vector<std::string> settings = changed_settings(config, changed);
  for (std::string& setting : settings) {
    if (stage > 0) setting = setting_of_stage(setting, stage);
  }
  return settings;
}

/// What the run reads first; absent where no document ends or there is no such corpus.
std::optional<CorpusPlan> windows_of(const PlanOptions& options, const DryRun& run, const Rates* rates, int threads, int cores) {
  const Config& config = run.config;
  std::error_code ignored;
  const bool asked = !options.corpus.empty() || options.windows > 0;
  if (config.data.mask != MaskRule::document) {
    if (!asked) return {};
    throw UsageError("with data.mask = \"causal\" the documents of a corpus change nothing",
                     "leave --corpus and --windows away; what the plan says is exact without them");
  }
  if (!asked && !std::filesystem::exists(config.data.corpus, ignored)) return {};
  const Corpus corpus = Corpus::open(config.data.corpus);
  // A plan may be of windows that this corpus does not have.
  if (!asked && corpus.token_count() < config.run.seq_len) return {};
  return plan_windows(run, corpus, options.windows, rates, threads, cores);
}

/// Ranks the settings of a config for a link, and measures the best of them. stage: of which the config is; 0: of none.
void tune_command(const PlanOptions& options, Config config, int64_t stage, const GptConfig& gpt) {
  const std::optional<Rates> rates = rates_for(options, config, gpt);
  const bool here = options.device == "this";
  const auto [threads, cores] = workers_of(options, config);
  if (!rates) {
    throw Error(fmt::format("--tune needs rates, and this machine is not calibrated for {} thread{} a rank", threads,
                            threads == 1 ? "" : "s"),
                "add --calibrate (ten to forty seconds, once), or --device h200, h100 or a100");
  }
  if (options.measure && !here) {
    throw UsageError("--measure runs on this machine, --device says " + options.device,
                     "leave --device away, or --measure");
  }
  if (!options.link.empty()) config.run.link = options.link;
  const double budget = budget_of(options, config, rates);
  Tuning tuning = tune(config, gpt, *rates, budget, threads, cores);
  if (!tuning.settings.front().fits) {
    const auto least = std::ranges::min_element(tuning.settings, {}, &TunedSetting::peak_bytes);
    throw Error(fmt::format("none of {} settings fits into {} a rank: the smallest needs {}", tuning.settings.size(),
                            human_bytes(budget), human_bytes(double(least->peak_bytes))),
                "give a larger --budget, more --ranks or a shorter --seq-len");
  }
  for (TunedSetting& setting : tuning.settings) {
    for (std::string& change : setting.set) {
      if (stage > 0) change = setting_of_stage(change, stage);
    }
  }
  const bool json = options.format == OutputFormat::json;
  if (!json) fmt::print("{}\n", tuning_text(tuning, *rates));
  std::vector<Measurement> measurements;
  if (options.measure) {
    std::fflush(stdout);
    for (const TunedSetting* setting : settings_to_measure(tuning)) {
      measurements.push_back({setting, measure_steps(*setting)});
    }
  }
  if (json) fmt::print("{}\n", to_json(tuning, *rates, measurements).dump());
  if (!json && options.measure) fmt::print("\n{}\n", measurements_text(measurements));
}

/// The stage that is planned, or the config without stages.
struct Subject {
  Config config;
  GptConfig gpt;
  bool automatic = false;          // its policy was left to "auto"
  int64_t number = 0;              // 0: there are no stages
  std::vector<StageNeeds> stages;  // then: of all of them
};

Subject subject_of(const PlanOptions& options, const Config& asked, const GptConfig& gpt,
                   const Rates* rates, double budget_bytes) {
  Config whole = asked;
  if (chooses_memory(whole)) {
    whole.memory.arena_bytes = std::max<int64_t>(1, int64_t(budget_bytes));
    whole = resolved_recompute(whole, gpt, options.stage);
  }
  Subject subject;
  if (!whole.stages.empty()) {
    const auto [threads, cores] = workers_of(options, whole);
    subject.stages = needs_of_stages(whole, gpt, rates, threads, cores);
    subject.number = options.stage > 0 ? options.stage : fullest_stage(subject.stages);
  }
  const int64_t number = std::max<int64_t>(1, subject.number);
  subject.config = stage_config(whole, number);
  subject.gpt = subject.config.gpt(gpt.vocabulary);
  subject.automatic = stage_config(asked, number).memory.recompute == Recompute::automatic;
  return subject;
}

/// What is planned, and how much of the budget it takes.
struct Outcome {
  Plan plan;
  std::vector<Knob> knobs;
  double budget_bytes = 0;
  std::optional<CorpusPlan> windows;
  bool fits() const { return double(plan.fullest().peak_bytes) <= budget_bytes; }
  int64_t longest_context() const { return knobs.front().longest_context; }
};

std::string fit_text(const Subject& subject, const DryRun& run, const Outcome& outcome) {
  if (outcome.fits()) return "fits";
  const auto memory = cheapest_memory_with_offload(run, outcome.budget_bytes);
  if (!memory) return "does not fit with any policy; more ranks on the ring make it smaller";
  return fmt::format("does not fit; --set {} does",
                     fmt::join(memory_changes(subject.config, *memory, subject.number), " --set "));
}

void print_text(const PlanOptions& options, const Subject& subject, const DryRun& run,
                const Outcome& outcome, const Rates* rates) {
  const Config& config = subject.config;
  const Plan& plan = outcome.plan;
  if (subject.number > 0) {
    const StageChoice choice = options.stage > 0 ? StageChoice::named : StageChoice::fullest;
    fmt::print("{}\n", needs_text(subject.stages, subject.number, choice));
    for (const StageNeeds& stage : subject.stages) {
      if (stage.number == subject.number || double(stage.peak_bytes) <= outcome.budget_bytes) continue;
      fmt::print("stage {} does not fit into {}\n", stage.number, human_bytes(outcome.budget_bytes));
    }
    fmt::print("\n");
  }
  fmt::print(
      "plan of {}{}: {} parameters, T = {} in {} layout on {} rank{} (rings of {}), recompute "
      "{}{}\n\n",
      options.config, subject.number > 0 ? fmt::format(", stage {}", subject.number) : "",
      human_count(double(parameter_count(subject.gpt))), config.run.seq_len,
      name_of(config.run.layout), config.run.ranks, config.run.ranks == 1 ? "" : "s",
      config.run.ring_size(), name_of(config.memory.recompute),
      subject.automatic
          ? fmt::format(" in chunks of {} (MLP) and {} (head) tokens, ZeRO-{} (chosen for the budget)",
                        config.memory.mlp_chunk, config.memory.head_chunk, config.memory.zero_stage)
          : "");
  fmt::print("{}\n", memory_text(run, plan, rates));
  fmt::print("budget {} a rank: {}\n\n", human_bytes(outcome.budget_bytes),
             fit_text(subject, run, outcome));
  fmt::print("{}\n\n", knobs_text(outcome.knobs));
  if (options.max_context) {
    fmt::print("longest context in that budget: T = {} (in steps of 1024)\n\n",
               outcome.longest_context());
  }
  fmt::print("{}\n", work_text(run, plan));
  if (outcome.windows) fmt::print("\n{}\n", corpus_text(run, *outcome.windows, plan));
  if (rates != nullptr) {
    fmt::print("\n{}\n\n{}\n", overlap_text(run, plan, *rates), timeline_text(run, plan, *rates));
  } else {
    fmt::print(
        "\nno times: this machine is not calibrated for this many threads a rank; --calibrate takes ten to forty "
        "seconds for a small model\n");
  }
}

void print_json(const PlanOptions& options, const Subject& subject, const DryRun& run,
                const Outcome& outcome, const Rates* rates) {
  nlohmann::ordered_json json = to_json(run, outcome.plan, outcome.knobs, rates);
  json["budget_bytes"] = outcome.budget_bytes;
  json["fits"] = outcome.fits();
  if (outcome.windows) json["corpus"] = to_json(*outcome.windows);
  if (subject.number > 0) {
    json["stage"] = subject.number;
    json["stages"] = to_json(subject.stages);
  }
  if (options.max_context) json["longest_context"] = outcome.longest_context();
  fmt::print("{}\n", json.dump());
}

}  // namespace

void plan_command(const PlanOptions& options) {
  if (options.paper) {
    fmt::print("{}\n", paper_text());
    return;
  }
  if (options.config.empty()) throw UsageError("no config is given", "ringlet plan CONFIG.toml, or ringlet plan --paper");
  std::vector<std::string> overrides = options.overrides;
  if (!options.corpus.empty()) overrides.push_back("data.corpus=" + options.corpus);
  if (options.device != "this") overrides.push_back("run.device=cuda");
  const Config asked = load_config(options.config, overrides);
  const int64_t stage = chosen_stage(asked, options.stage);
  const Config longest = stage_config(asked, stage);
  const GptConfig gpt =
      longest.gpt(options.vocabulary > 0 ? options.vocabulary : planned_vocabulary(asked));
  gpt.validate();
  if (options.tune) {
    return tune_command(
        options,
        one_stage(asked, options.stage, [](const std::string& line) { Console().say(line); }),
        asked.stages.empty() ? 0 : stage, gpt);
  }
  const std::optional<Rates> found = rates_for(options, longest, gpt);
  const Rates* const rates = found ? &*found : nullptr;
  const double budget = budget_of(options, asked, found);
  const Subject subject = subject_of(options, asked, gpt, rates, budget);
  const DryRun run{subject.config, subject.gpt, Mask{{0}, subject.config.data.window}};
  const auto [threads, cores] = workers_of(options, subject.config);
  Outcome outcome{make_plan(run, rates, threads, cores), {}, budget, {}};
  check_budget(run, outcome.plan, budget);
  outcome.knobs = knobs_of(run, outcome.plan, options.max_context ? budget : 0);
  if (options.max_context && outcome.longest_context() == 0) {
    throw Error(fmt::format("not even T = 1024 fits into {} a rank", human_bytes(budget)),
                "give a larger --budget, more ranks, or memory.recompute = \"full\"");
  }
  outcome.windows = windows_of(options, run, rates, threads, cores);
  if (options.format == OutputFormat::json) {
    print_json(options, subject, run, outcome, rates);
  } else {
    print_text(options, subject, run, outcome, rates);
  }
}

}  // namespace ringlet
