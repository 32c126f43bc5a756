#include "train/plan/memory_choice.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <utility>
#include <vector>

#include "train/console.h"
#include "train/devices.h"
#include "train/machine.h"
#include "train/plan/plan.h"
#include "train/stages.h"

namespace ringlet {
namespace {

constexpr int64_t kLeastChunk = 64;  // tokens; smaller products are slow
constexpr Recompute kPolicies[] = {Recompute::none, Recompute::selective, Recompute::full};

bool fits(const Config& config, const DryRun& run, double budget_bytes) {
  return double(peak_bytes({config, run.gpt, run.mask})) <= budget_bytes;
}

/// A chunk's own size and the powers of two below it, largest first.
std::vector<int64_t> chunk_sizes(int64_t configured) {
  std::vector<int64_t> sizes{configured};
  for (auto size = int64_t(std::bit_floor(uint64_t(std::max<int64_t>(1, configured - 1)))); size >= kLeastChunk; size /= 2) {
    sizes.push_back(size);
  }
  return sizes;
}

/// All is recomputed, in the smallest chunks.
void take_least(Config::Memory& memory) {
  memory.recompute = Recompute::full;
  memory.head_chunk = chunk_sizes(memory.head_chunk).back();
  memory.mlp_chunk = chunk_sizes(memory.mlp_chunk).back();
}

/// Lowers the chunks of the config no further than the budget asks. False: the smallest do not fit either.
bool fit_chunks(Config& config, const DryRun& run, double budget_bytes) {
  if (fits(config, run, budget_bytes)) return true;
  const Config::Memory configured = config.memory;
  config.memory.head_chunk = chunk_sizes(configured.head_chunk).back();
  config.memory.mlp_chunk = chunk_sizes(configured.mlp_chunk).back();
  if (!fits(config, run, budget_bytes)) return false;
  // They are never in use together: what fits beside the other's smallest fits beside any of its that fits.
  for (int64_t Config::Memory::*chunk : {&Config::Memory::head_chunk, &Config::Memory::mlp_chunk}) {
    for (const int64_t size : chunk_sizes(configured.*chunk)) {
      config.memory.*chunk = size;
      if (fits(config, run, budget_bytes)) break;
    }
  }
  return true;
}

/// With memory.zero_stage and memory.offload as they are.
std::optional<Config::Memory> cheapest_policy(const DryRun& run, double budget_bytes) {
  Config config = run.config;
  for (const Recompute policy : kPolicies) {
    config.memory = run.config.memory;
    config.memory.recompute = policy;
    if (fit_chunks(config, run, budget_bytes)) return config.memory;
  }
  return {};
}

/// As configured, and what shards more over the ranks.
std::vector<int64_t> zero_stages(const Config& config) {
  if (config.memory.zero_stage == 1 && config.run.ranks > 1) return {1, 2};
  return {config.memory.zero_stage};
}

/// A config whose stages have policies of their own.
struct Resolved {
  Config config;
  int recomputed = 0;        // sum of the policies of its stages, as numbers
  int64_t does_not_fit = 0;  // the first such stage; 0: all fit

  bool is_cheaper_than(const Resolved& other) const {
    return std::pair(does_not_fit > 0, recomputed) < std::pair(other.does_not_fit > 0, other.recomputed);
  }
};

/// With memory.zero_stage as it is.
Resolved with_policies(const Config& config, const GptConfig& gpt, int64_t only_stage) {
  Resolved resolved{config};
  for (int64_t number = 1; number <= stage_count(config); ++number) {
    const Config alone = stage_config(config, number);
    if (alone.memory.recompute != Recompute::automatic) continue;
    const DryRun run{alone, gpt, Mask{{0}, alone.data.window}};
    std::optional<Config::Memory> memory = cheapest_policy(run, budget_bytes(alone));
    if (!memory) {
      const bool counts = only_stage == 0 || number == only_stage;
      if (counts && resolved.does_not_fit == 0) resolved.does_not_fit = number;
      memory = alone.memory;
      take_least(*memory);
    }
    resolved.recomputed += int(memory->recompute);
    set_memory(resolved.config, number, *memory);
  }
  return resolved;
}

[[noreturn]] void throw_does_not_fit(const Config& config, const GptConfig& gpt, int64_t number) {
  const Config alone = stage_config(config, number);
  const DryRun run{alone, gpt, Mask{{0}, alone.data.window}};
  Config smallest = alone;
  smallest.memory = smallest_memory(run);
  const double budget = budget_bytes(alone), least = double(peak_bytes({smallest, gpt, run.mask}));
  const auto offloaded = cheapest_memory_with_offload(run, budget);
  throw Error(fmt::format("{}no recompute policy fits {} a rank: \"full\" in chunks of {} tokens needs {}",
                          config.stages.empty() ? "" : fmt::format("stage {}: ", number), human_bytes(budget),
                          smallest.memory.mlp_chunk, human_bytes(least)),
              fmt::format("use {}more ranks or a shorter run.seq_len",
                          offloaded ? fmt::format("memory.offload = \"{}\", ", offloaded->offload) : ""));
}

}  // namespace

double budget_bytes(const Config& config) {
  if (config.memory.arena_bytes > 0) return double(config.memory.arena_bytes);
  if (config.run.device == DeviceKind::cuda) return double(Devices(DeviceKind::cuda).share_bytes(0, int(config.run.ranks)));
  return 0.8 * double(physical_memory_bytes()) / double(config.run.ranks);
}

std::optional<Config::Memory> cheapest_memory(const DryRun& run, double budget_bytes) {
  std::optional<Config::Memory> cheapest;
  Config config = run.config;
  for (const int64_t zero_stage : zero_stages(config)) {
    config.memory.zero_stage = zero_stage;
    const std::optional<Config::Memory> memory = cheapest_policy({config, run.gpt, run.mask}, budget_bytes);
    if (memory && (!cheapest || memory->recompute < cheapest->recompute)) cheapest = memory;
  }
  return cheapest;
}

std::optional<Config::Memory> cheapest_memory_with_offload(const DryRun& run, double budget_bytes) {
  const std::optional<Config::Memory> without = cheapest_memory(run, budget_bytes);
  if (without || !run.config.memory.offload.empty()) return without;
  Config config = run.config;
  config.memory.offload = config.run.device == DeviceKind::cuda ? Config::Memory::kHost : "FOLDER";
  return cheapest_memory({config, run.gpt, run.mask}, budget_bytes);
}

Config::Memory smallest_memory(const DryRun& run) {
  std::vector<Config> candidates;
  for (const int64_t zero_stage : zero_stages(run.config)) {
    Config& config = candidates.emplace_back(run.config);
    config.memory.zero_stage = zero_stage;
    take_least(config.memory);
  }
  const auto peak = [&](const Config& config) { return peak_bytes({config, run.gpt, run.mask}); };
  return std::ranges::min_element(candidates, {}, peak)->memory;
}

Config resolved_recompute(const Config& config, const GptConfig& gpt, int64_t only_stage) {
  Resolved cheapest = with_policies(config, gpt, only_stage);
  for (const int64_t zero_stage : zero_stages(config)) {
    Config changed = config;
    changed.memory.zero_stage = zero_stage;
    Resolved resolved = with_policies(changed, gpt, only_stage);
    if (resolved.is_cheaper_than(cheapest)) cheapest = std::move(resolved);
  }
  if (cheapest.does_not_fit > 0) throw_does_not_fit(config, gpt, cheapest.does_not_fit);
  return cheapest.config;
}

}  // namespace ringlet
