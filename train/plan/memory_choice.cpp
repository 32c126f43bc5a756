#include "train/plan/memory_choice.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
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

/// Would ZeRO-2 spare the fullest rank anything?
bool can_shard_gradients(const Config& config) { return config.memory.zero_stage == 1 && config.run.ranks > 1; }

Config with_sharded_gradients(Config config) {
  config.memory.zero_stage = 2;
  return config;
}

/// Says what is missing, and what would help.
[[noreturn]] void throw_does_not_fit(const Config& config, const GptConfig& gpt, int64_t number) {
  const Config alone = stage_config(config, number);
  const DryRun run{alone, gpt, Mask{{0}, alone.data.window}};
  const double budget = budget_bytes(alone);
  Config smallest = alone;
  take_least(smallest.memory);
  if (config.stages.empty()) smallest.memory = smallest_memory(run);
  std::string help;
  if (const auto memory = cheapest_memory_with_offload(run, budget)) {
    Config helped = smallest;
    helped.memory.zero_stage = memory->zero_stage;
    helped.memory.offload = memory->offload;
    for (const std::string& setting : changed_settings(smallest, helped)) help += setting + ", ";
  }
  const double needed = double(peak_bytes({smallest, gpt, run.mask}));
  const bool alike = human_bytes(budget) == human_bytes(needed);
  const auto shown = [&](double bytes) { return alike ? fmt::format("{:.0f} bytes", bytes) : human_bytes(bytes); };
  throw Error(fmt::format("{}no recompute policy fits {} a rank: \"full\"{} in chunks of {} tokens needs {}",
                          config.stages.empty() ? "" : fmt::format("stage {}: ", number), shown(budget),
                          smallest.memory.zero_stage > alone.memory.zero_stage ? " with ZeRO-2" : "",
                          smallest.memory.mlp_chunk, shown(needed)),
              fmt::format("use {}more ranks or a shorter run.seq_len", help));
}

}  // namespace

double budget_bytes(const Config& config) {
  if (config.memory.arena_bytes > 0) return double(config.memory.arena_bytes);
  if (config.run.device == DeviceKind::cuda) return double(Devices(DeviceKind::cuda).share_bytes(0, int(config.run.ranks)));
  return 0.8 * double(physical_memory_bytes()) / double(config.run.ranks);
}

std::optional<Config::Memory> cheapest_memory(const DryRun& run, double budget_bytes) {
  const auto configured = cheapest_policy(run, budget_bytes);
  const Config& config = run.config;
  if (!can_shard_gradients(config)) return configured;
  const bool sums_once = config.train.batch_windows <= config.run.ranks / config.run.ring_size();
  if (configured && (!sums_once || configured->recompute == Recompute::none)) return configured;
  const Config sharded = with_sharded_gradients(config);
  const auto other = cheapest_policy({sharded, run.gpt, run.mask}, budget_bytes);
  return other && (!configured || other->recompute < configured->recompute) ? other : configured;
}

std::optional<Config::Memory> cheapest_memory_with_offload(const DryRun& run, double budget_bytes) {
  const std::optional<Config::Memory> without = cheapest_memory(run, budget_bytes);
  if (without || !run.config.memory.offload.empty()) return without;
  Config config = run.config;
  config.memory.offload = config.run.device == DeviceKind::cuda ? Config::Memory::kHost : "FOLDER";
  return cheapest_memory({config, run.gpt, run.mask}, budget_bytes);
}

Config::Memory smallest_memory(const DryRun& run) {
  Config smallest = run.config;
  take_least(smallest.memory);
  if (!can_shard_gradients(smallest)) return smallest.memory;
  const Config sharded = with_sharded_gradients(smallest);
  const auto peak = [&](const Config& config) { return peak_bytes({config, run.gpt, run.mask}); };
  return peak(sharded) < peak(smallest) ? sharded.memory : smallest.memory;
}

Config resolved_recompute(const Config& config, const GptConfig& gpt, int64_t only_stage) {
  Config resolved = config;
  for (int64_t number = 1; number <= stage_count(config); ++number) {
    Config alone = stage_config(config, number);
    if (alone.memory.recompute != Recompute::automatic) continue;
    const DryRun run{alone, gpt, Mask{{0}, alone.data.window}};
    const double budget = budget_bytes(alone);
    std::optional<Config::Memory> memory =
        config.stages.empty() ? cheapest_memory(run, budget) : cheapest_policy(run, budget);
    if (!memory && (only_stage == 0 || number == only_stage)) throw_does_not_fit(config, gpt, number);
    if (!memory) take_least(alone.memory);
    set_memory(resolved, number, memory ? *memory : alone.memory);
  }
  return resolved;
}

}  // namespace ringlet
