#include "train/commands/plan.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>
#include <optional>

#include "train/console.h"
#include "train/machine.h"
#include "train/plan/calibration.h"
#include "train/plan/device_profiles.h"
#include "train/plan/paper.h"
#include "train/plan/plan_text.h"
#include "train/units.h"
#include "train/world.h"

namespace ringlet {
namespace {

std::optional<Rates> rates_for(const PlanOptions& options, const Config& config, const GptConfig& gpt) {
  std::optional<Rates> rates;
  if (options.device != "this") {
    rates = rates_of_device(options.device);
  } else {
    const int threads = threads_per_rank(config.run);
    if (options.calibrate) save_rates(calibrate(config, gpt, threads), threads);
    rates = load_rates(threads);
  }
  const std::string& link = options.link.empty() ? config.run.link : options.link;
  if (rates && !link.empty()) rates->link = parse_link(link);
  return rates;
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
    if (name == "weights" || name == "gradients" || name == "optimizer") bytes += region.bytes;
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

}  // namespace

void plan_command(const PlanOptions& options) {
  if (options.paper) {
    fmt::print("{}\n", paper_text());
    return;
  }
  if (options.config.empty()) throw UsageError("no config is given", "ringlet plan CONFIG.toml, or ringlet plan --paper");
  Config config = load_config(options.config, options.overrides);
  const GptConfig gpt = config.gpt(options.vocabulary > 0 ? options.vocabulary : planned_vocabulary(config));
  gpt.validate();
  const bool automatic = config.memory.recompute == Recompute::automatic;
  if (automatic) {
    if (!options.budget.empty()) config.memory.arena_bytes = int64_t(parse_bytes(options.budget));
    config = resolved_recompute(config, gpt);
  }
  const DryRun run{config, gpt, Mask{{0}, config.data.window}};
  const std::optional<Rates> rates = rates_for(options, config, gpt);
  const bool here = options.device == "this";
  const Plan plan = make_plan(run, rates ? &*rates : nullptr, here ? threads_per_rank(config.run) : 1,
                              here ? usable_cores() : 0);
  const double budget = budget_of(options, config, rates);
  check_budget(plan, budget);
  const std::vector<Knob> knobs =
      plan.every_rank || options.max_context ? knobs_of(run, options.max_context ? budget : 0) : std::vector<Knob>{};
  const bool fits = double(plan.fullest().peak_bytes) <= budget;
  const std::optional<Recompute> policy = fits ? config.memory.recompute : cheapest_policy(run, budget);
  if (options.max_context && knobs.front().longest_context == 0) {
    throw Error(fmt::format("not even T = 1024 fits into {} a rank", human_bytes(budget)),
                "give a larger --budget, more ranks, or memory.recompute = \"full\"");
  }

  if (options.format == OutputFormat::json) {
    nlohmann::ordered_json json = to_json(run, plan, knobs, rates ? &*rates : nullptr);
    json["budget_bytes"] = budget;
    json["fits"] = fits;
    if (options.max_context) json["longest_context"] = knobs.front().longest_context;
    fmt::print("{}\n", json.dump());
    return;
  }
  fmt::print("plan of {}: {} parameters, T = {} in {} layout on {} rank{} (rings of {}), recompute {}{}\n\n",
             options.config, human_count(double(parameter_count(gpt))), config.run.seq_len,
             name_of(config.run.layout), config.run.ranks, config.run.ranks == 1 ? "" : "s", config.run.ring_size(),
             name_of(config.memory.recompute), automatic ? " (chosen for the budget)" : "");
  fmt::print("{}\n", memory_text(plan, rates ? &*rates : nullptr));
  fmt::print("budget {} a rank: {}\n\n", human_bytes(budget),
             fits     ? "fits"
             : policy ? fmt::format("does not fit; memory.recompute = \"{}\" does", name_of(*policy))
                      : std::string("does not fit with any policy; more ranks on the ring make it smaller"));
  if (!knobs.empty()) fmt::print("{}\n\n", knobs_text(knobs));
  if (options.max_context) {
    fmt::print("longest context in that budget: T = {} (in steps of 1024)\n\n", knobs.front().longest_context);
  }
  fmt::print("{}\n", work_text(run, plan));
  if (rates) {
    fmt::print("\n{}\n\n{}\n", overlap_text(run, plan, *rates), timeline_text(run, plan, *rates));
  } else {
    fmt::print("\nno times: this machine is not calibrated for this many threads a rank; --calibrate takes about ten "
               "seconds\n");
  }
}

}  // namespace ringlet
