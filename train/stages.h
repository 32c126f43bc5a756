#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "train/config.h"

namespace ringlet {

/// Stages are counted from 1. A config without [[stage]] is a run of one stage, which is the config
/// itself.
int64_t stage_count(const Config& config);

/// Stage `number` as a config without stages, for everything that knows nothing of them. Its
/// train.steps are the stage's own, and from the second stage on its run.seed is another one, so
/// that each stage has an order of windows of its own.
Config stage_config(const Config& config, int64_t number);

/// Gives stage `number` the policy and chunks of `memory`, a config without stages all of it.
void set_memory(Config& config, int64_t number, const Config::Memory& memory);

/// Does any stage leave its policy to "auto"?
bool chooses_memory(const Config& config);

/// Where a stage stands in its run: the steps after the first `first_step`.
struct StagePlace {
  int64_t number = 1, first_step = 0, steps = 0;
  int64_t end_step() const { return first_step + steps; }
  bool operator==(const StagePlace&) const = default;
};
StagePlace stage_place(const Config& config, int64_t number);

/// The stage that trained step `step`: the first for step 0, the last for steps behind the run's
/// end.
StagePlace stage_at(const Config& config, int64_t step);

/// The stage that a command for a single length is about: stage `number`, or, where that is 0, the
/// longest T, of equals the last. Throws UsageError when there is no stage of that number.
int64_t chosen_stage(const Config& config, int64_t number);

/// That stage alone. `say` gets a line about it where the config has stages and nobody has named
/// one.
Config one_stage(const Config& config, int64_t number,
                 const std::function<void(const std::string&)>& say);

/// "group.key=value" as --set takes it for that stage alone, where its key is one that stages have.
std::string setting_of_stage(const std::string& setting, int64_t number);

}  // namespace ringlet
