#pragma once

#include <optional>

#include "train/plan/dry_run.h"

namespace ringlet {

/// The bytes that a config gives each rank: memory.arena_bytes, or four fifths of the machine's memory, shared out.
double budget_bytes(const Config& config);

/// The cheapest memory settings with which the fullest rank fits into `budget_bytes`: the policy that recomputes least,
/// with the head and MLP chunks of the config or, where these are too large, the largest powers of two that fit, down to
/// 64; with sharded gradients (ZeRO-2) where less is recomputed then and no ring trains more than a window a step, so
/// that they are summed as often, or else where nothing fits without. Absent: nothing fits. memory.offload stays as it
/// is: it takes memory or a disk elsewhere. The config is of one stage.
std::optional<Config::Memory> cheapest_memory(const DryRun& run, double budget_bytes);

/// The same with memory.offload where nothing fits without; "FOLDER" stands for one that the user has to name.
std::optional<Config::Memory> cheapest_memory_with_offload(const DryRun& run, double budget_bytes);

/// The settings that need least of those that cheapest_memory tries.
Config::Memory smallest_memory(const DryRun& run);

/// The config with the cheapest memory settings in place of recompute "auto". Of each stage where there are stages, which
/// share memory.zero_stage: it stays as it is then. Throws Error that says how much is missing when none fits; where
/// `only_stage` is not 0, of that stage only: another one that does not fit gets what needs least.
Config resolved_recompute(const Config& config, const GptConfig& gpt, int64_t only_stage = 0);

}  // namespace ringlet
