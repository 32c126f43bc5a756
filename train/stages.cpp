#include "train/stages.h"

#include <fmt/format.h>

#include <algorithm>

#include "kernels/check.h"
#include "kernels/random.h"
#include "train/config_keys.h"

namespace ringlet {
namespace {

/// The first stage has the run's own: a run of one stage is what it would be without.
int64_t seed_of_stage(int64_t seed, int64_t number) {
  if (number == 1) return seed;
  return int64_t(mix_bits(uint64_t(seed) ^ (uint64_t(number) << 32)) >> 1);
}

}  // namespace

int64_t Config::Stage::steps() const {
  const int64_t step_tokens = seq_len * batch_windows;
  return (tokens + step_tokens - 1) / step_tokens;
}

int64_t stage_count(const Config& config) {
  return std::max<int64_t>(1, std::ssize(config.stages));
}

Config stage_config(const Config& config, int64_t number) {
  CHECK(number >= 1 && number <= stage_count(config), "stage ", number, " of ",
        stage_count(config));
  Config result = config;
  if (config.stages.empty()) return result;
  Config::Stage stage = config.stages[size_t(number - 1)];
  result.stages.clear();
  copy_values(stage_keys_of(stage), keys_of(result));
  result.train.steps = stage.steps();
  result.run.seed = seed_of_stage(config.run.seed, number);
  return result;
}

void set_memory(Config& config, int64_t number, const Config::Memory& memory) {
  if (config.stages.empty()) {
    config.memory = memory;
    return;
  }
  Config::Stage& stage = config.stages[size_t(number - 1)];
  stage.recompute = memory.recompute;
  stage.head_chunk = memory.head_chunk;
  stage.mlp_chunk = memory.mlp_chunk;
}

bool chooses_memory(const Config& config) {
  if (config.stages.empty()) return config.memory.recompute == Recompute::automatic;
  return std::ranges::any_of(config.stages, [](const Config::Stage& stage) {
    return stage.recompute == Recompute::automatic;
  });
}

StagePlace stage_place(const Config& config, int64_t number) {
  CHECK(number >= 1 && number <= stage_count(config), "stage ", number, " of ",
        stage_count(config));
  if (config.stages.empty()) return {1, 0, config.train.steps};
  StagePlace place{number, 0, config.stages[size_t(number - 1)].steps()};
  for (int64_t before = 1; before < number; ++before)
    place.first_step += config.stages[size_t(before - 1)].steps();
  return place;
}

StagePlace stage_at(const Config& config, int64_t step) {
  int64_t number = 1;
  while (number < stage_count(config) && step > stage_place(config, number).end_step()) ++number;
  return stage_place(config, number);
}

int64_t chosen_stage(const Config& config, int64_t number) {
  const int64_t count = stage_count(config);
  if (number < 0 || number > count) {
    throw UsageError(fmt::format("there is no stage {}: the config has {}", number,
                                 config.stages.empty() ? "none" : fmt::format("{}", count)),
                     config.stages.empty() ? "leave --stage away"
                                           : fmt::format("choose a --stage from 1 to {}", count));
  }
  if (number > 0) return number;
  int64_t longest = 1;
  for (int64_t other = 2; other <= count; ++other) {
    const auto length = [&](int64_t one) { return config.stages[size_t(one - 1)].seq_len; };
    if (length(other) >= length(longest)) longest = other;
  }
  return longest;
}

Config one_stage(const Config& config, int64_t number,
                 const std::function<void(const std::string&)>& say) {
  const int64_t chosen = chosen_stage(config, number);
  Config alone = stage_config(config, chosen);
  if (!config.stages.empty() && number == 0) {
    say(fmt::format("stage {} of {}, the longest: T = {}; --stage takes another one", chosen,
                    stage_count(config), alone.run.seq_len));
  }
  return alone;
}

std::string setting_of_stage(const std::string& setting, int64_t number) {
  const std::string_view name = std::string_view(setting).substr(0, setting.find('='));
  Config::Stage stage;
  const std::vector<ConfigKey> keys = stage_keys_of(stage);
  if (std::ranges::find(keys, name, &ConfigKey::name) == keys.end()) return setting;
  return fmt::format("stage.{}.{}{}", number, key_of_stage(name), setting.substr(name.size()));
}

}  // namespace ringlet
