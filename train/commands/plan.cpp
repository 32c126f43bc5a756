#include "train/commands/plan.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <nlohmann/json.hpp>
#include <optional>

#include "train/console.h"
#include "train/devices.h"
#include "train/machine.h"
#include "train/plan/calibration.h"
#include "train/plan/device_profiles.h"
#include "train/plan/corpus_windows.h"
#include "train/plan/paper.h"
#include "train/plan/plan_text.h"
#include "train/plan/tune.h"
#include "train/units.h"
#include "train/world.h"

namespace ringlet {
namespace {

Devices devices_here(const Config& config) {
  try {
    return Devices(config.run.device, threads_per_rank(config.run));
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
    rates = load_rates(devices.rates_name());
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

void check_budget(const Plan& plan, double budget_bytes) {
  const int64_t fixed = fixed_bytes(plan.fullest());
  if (budget_bytes >= double(fixed)) return;
  throw Error(fmt::format("a budget of {} a rank is below the weights, their gradients and moments: {}",
                          human_bytes(budget_bytes), human_bytes(double(fixed))),
              fmt::format("give at least {} a rank, or make the model smaller", human_bytes(double(fixed))));
}

std::vector<std::string> memory_changes(const Config& config, const Config::Memory& memory) {
  Config changed = config;
  changed.memory = memory;
  return changed_settings(config, changed);
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

/// Ranks the settings of the config for a link, and measures the best of them.
void tune_command(const PlanOptions& options, Config config, const GptConfig& gpt) {
  const std::optional<Rates> rates = rates_for(options, config, gpt);
  const bool here = options.device == "this";
  const auto [threads, cores] = workers_of(options, config);
  if (!rates) {
    throw Error(fmt::format("--tune needs rates, and this machine is not calibrated for {} thread{} a rank", threads,
                            threads == 1 ? "" : "s"),
                "add --calibrate (about ten seconds, once), or --device h200, h100 or a100");
  }
  if (options.measure && !here) {
    throw UsageError("--measure runs on this machine, --device says " + options.device,
                     "leave --device away, or --measure");
  }
  if (!options.link.empty()) config.run.link = options.link;
  const double budget = budget_of(options, config, rates);
  const Tuning tuning = tune(config, gpt, *rates, budget, threads, cores);
  if (!tuning.settings.front().fits) {
    const auto least = std::ranges::min_element(tuning.settings, {}, &TunedSetting::peak_bytes);
    throw Error(fmt::format("none of {} settings fits into {} a rank: the smallest needs {}", tuning.settings.size(),
                            human_bytes(budget), human_bytes(double(least->peak_bytes))),
                "give a larger --budget, more --ranks or a shorter --seq-len");
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

}  // namespace

void plan_command(const PlanOptions& options) {
  if (options.paper) {
    fmt::print("{}\n", paper_text());
    return;
  }
  if (options.config.empty()) throw UsageError("no config is given", "ringlet plan CONFIG.toml, or ringlet plan --paper");
  std::vector<std::string> overrides = options.overrides;
  if (!options.corpus.empty()) overrides.push_back("data.corpus=" + options.corpus);
  Config config = load_config(options.config, overrides);
  const GptConfig gpt = config.gpt(options.vocabulary > 0 ? options.vocabulary : planned_vocabulary(config));
  gpt.validate();
  if (options.tune) return tune_command(options, std::move(config), gpt);
  const bool automatic = config.memory.recompute == Recompute::automatic;
  const std::optional<Rates> rates = rates_for(options, config, gpt);
  const double budget = budget_of(options, config, rates);
  if (automatic) {
    config.memory.arena_bytes = std::max<int64_t>(1, int64_t(budget));
    config = resolved_recompute(config, gpt);
  }
  const DryRun run{config, gpt, Mask{{0}, config.data.window}};
  const auto [threads, cores] = workers_of(options, config);
  const Plan plan = make_plan(run, rates ? &*rates : nullptr, threads, cores);
  check_budget(plan, budget);
  const std::vector<Knob> knobs = knobs_of(run, plan, options.max_context ? budget : 0);
  const bool fits = double(plan.fullest().peak_bytes) <= budget;
  const std::optional<Config::Memory> memory = fits ? config.memory : cheapest_memory(run, budget);
  if (options.max_context && knobs.front().longest_context == 0) {
    throw Error(fmt::format("not even T = 1024 fits into {} a rank", human_bytes(budget)),
                "give a larger --budget, more ranks, or memory.recompute = \"full\"");
  }

  const std::optional<CorpusPlan> windows = windows_of(options, run, rates ? &*rates : nullptr, threads, cores);

  if (options.format == OutputFormat::json) {
    nlohmann::ordered_json json = to_json(run, plan, knobs, rates ? &*rates : nullptr);
    json["budget_bytes"] = budget;
    json["fits"] = fits;
    if (windows) json["corpus"] = to_json(*windows);
    if (options.max_context) json["longest_context"] = knobs.front().longest_context;
    fmt::print("{}\n", json.dump());
    return;
  }
  fmt::print("plan of {}: {} parameters, T = {} in {} layout on {} rank{} (rings of {}), recompute {}{}\n\n",
             options.config, human_count(double(parameter_count(gpt))), config.run.seq_len,
             name_of(config.run.layout), config.run.ranks, config.run.ranks == 1 ? "" : "s", config.run.ring_size(),
             name_of(config.memory.recompute),
             automatic ? fmt::format(" in chunks of {} (MLP) and {} (head) tokens (chosen for the budget)",
                                     config.memory.mlp_chunk, config.memory.head_chunk)
                       : "");
  fmt::print("{}\n", memory_text(run, plan, rates ? &*rates : nullptr));
  fmt::print("budget {} a rank: {}\n\n", human_bytes(budget),
             fits     ? "fits"
             : memory ? fmt::format("does not fit; --set {} does", fmt::join(memory_changes(config, *memory), " --set "))
                      : std::string("does not fit with any policy; more ranks on the ring make it smaller"));
  fmt::print("{}\n\n", knobs_text(knobs));
  if (options.max_context) {
    fmt::print("longest context in that budget: T = {} (in steps of 1024)\n\n", knobs.front().longest_context);
  }
  fmt::print("{}\n", work_text(run, plan));
  if (windows) fmt::print("\n{}\n", corpus_text(run, *windows, plan));
  if (rates) {
    fmt::print("\n{}\n\n{}\n", overlap_text(run, plan, *rates), timeline_text(run, plan, *rates));
  } else {
    fmt::print("\nno times: this machine is not calibrated for this many threads a rank; --calibrate takes about ten "
               "seconds for a small model\n");
  }
}

}  // namespace ringlet
