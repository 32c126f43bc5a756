#pragma once

#include <optional>

#include "train/plan/dry_run.h"

namespace ringlet {

/// The bytes that a config gives each rank: memory.arena_bytes, or four fifths of the machine's memory, shared out.
double budget_bytes(const Config& config);

/// The cheapest memory settings with which the fullest rank fits into `budget_bytes`: the policy that recomputes least;
/// where that fits only so, sharded gradients (ZeRO-2); the head and MLP chunks of the config or, where these are too
/// large, the largest powers of two that fit, down to 64. Absent: none do. memory.offload stays as it is: it takes
/// memory or a disk elsewhere. The config is of one stage.
std::optional<Config::Memory> cheapest_memory(const DryRun& run, double budget_bytes);

/// The same with memory.offload where nothing fits without; "FOLDER" stands for one that the user has to name.
std::optional<Config::Memory> cheapest_memory_with_offload(const DryRun& run, double budget_bytes);

/// The settings that need least of those that cheapest_memory tries.
Config::Memory smallest_memory(const DryRun& run);

/// The config with the cheapest memory settings in place of recompute "auto", for each stage; memory.zero_stage, which
/// all stages share, is raised where one of them then recomputes less. Throws Error that says how much is missing when
/// none fits; where `only_stage` is not 0, of that stage only: another one that does not fit gets what needs least.
Config resolved_recompute(const Config& config, const GptConfig& gpt, int64_t only_stage = 0);

}  // namespace ringlet
