#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "train/plan/plan.h"

namespace ringlet {

/// What one stage of a run needs, on the fullest rank.
struct StageNeeds {
  int64_t number = 1, seq_len = 0, batch_windows = 0, steps = 0;
  Recompute recompute = Recompute::selective;
  int64_t peak_bytes = 0;
  double step_seconds = 0;  // 0: not known
};

/// Of every stage of a config whose memory settings are resolved. rates, threads_per_rank, cores:
/// as of make_plan.
std::vector<StageNeeds> needs_of_stages(const Config& config, const GptConfig& gpt,
                                        const Rates* rates, int threads_per_rank, int cores);

/// The number of the one that needs most memory.
int64_t fullest_stage(const std::vector<StageNeeds>& stages);

/// Why a stage is planned: somebody named it, or it needs most.
enum class StageChoice : uint8_t { named, fullest };

/// A line for each stage, and which of them the plan is of; without a line break at the end.
std::string needs_text(const std::vector<StageNeeds>& stages, int64_t planned, StageChoice choice);
nlohmann::ordered_json to_json(const std::vector<StageNeeds>& stages);

}  // namespace ringlet
