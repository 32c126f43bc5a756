#include "train/plan/stage_needs.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "train/console.h"
#include "train/stages.h"

namespace ringlet {

std::vector<StageNeeds> needs_of_stages(const Config& config, const GptConfig& gpt,
                                        const Rates* rates, int threads_per_rank, int cores) {
  std::vector<StageNeeds> stages;
  for (int64_t number = 1; number <= stage_count(config); ++number) {
    const Config alone = stage_config(config, number);
    const Plan plan =
        make_plan({alone, gpt, Mask{{0}, alone.data.window}}, rates, threads_per_rank, cores);
    stages.push_back({number, alone.run.seq_len, alone.train.batch_windows, alone.train.steps,
                      alone.memory.recompute, plan.fullest().peak_bytes, plan.step_seconds});
  }
  return stages;
}

int64_t fullest_stage(const std::vector<StageNeeds>& stages) {
  return std::ranges::max_element(stages, {}, &StageNeeds::peak_bytes)->number;
}

std::string needs_text(const std::vector<StageNeeds>& stages, int64_t planned, StageChoice choice) {
  const bool timed = stages.front().step_seconds > 0;
  std::vector<std::vector<std::string>> table{
      {"stage", "T", "windows a step", "steps", "recompute", "peak of a rank"}};
  if (timed) table[0].insert(table[0].end(), {"predicted step", "in all"});
  double seconds = 0;
  for (const StageNeeds& stage : stages) {
    table.push_back({std::to_string(stage.number), std::to_string(stage.seq_len),
                     std::to_string(stage.batch_windows), std::to_string(stage.steps),
                     name_of(stage.recompute), human_bytes(double(stage.peak_bytes))});
    if (!timed) continue;
    table.back().push_back(fmt::format("{:.4g} ms", 1e3 * stage.step_seconds));
    table.back().push_back(human_seconds(double(stage.steps) * stage.step_seconds));
    seconds += double(stage.steps) * stage.step_seconds;
  }
  std::string text = format_table(table);
  if (timed) text += fmt::format("all stages: {}; ", human_seconds(seconds));
  return text + (choice == StageChoice::named
                     ? fmt::format("what follows is of stage {}", planned)
                     : fmt::format("what follows is of stage {}, which needs most memory; --stage "
                                   "takes another one",
                                   planned));
}

nlohmann::ordered_json to_json(const std::vector<StageNeeds>& stages) {
  auto list = nlohmann::ordered_json::array();
  for (const StageNeeds& stage : stages) {
    list.push_back({{"stage", stage.number},
                    {"seq_len", stage.seq_len},
                    {"batch_windows", stage.batch_windows},
                    {"steps", stage.steps},
                    {"recompute", name_of(stage.recompute)},
                    {"peak_bytes", stage.peak_bytes}});
    if (stage.step_seconds > 0) list.back()["step_seconds"] = stage.step_seconds;
  }
  return list;
}

}  // namespace ringlet
