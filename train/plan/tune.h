#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "train/plan/plan.h"

namespace ringlet {

/// What a setting changes of a training, least first: nothing of its losses but their rounding, the windows of a step,
/// the length of a window, the model.
enum class Change : uint8_t { nothing, batch, context, model };

/// Settings in place of the config's own, and what a step with them needs and takes.
struct TunedSetting {
  Config config;
  GptConfig gpt;
  Change change = Change::nothing;
  std::vector<std::string> set;  // what differs from the config, as --set takes it
  int64_t rows = 0;              // tokens of a window that the fullest rank holds
  int pieces = 0;                // most of a rank: messages that its keys and values make in a hop
  int64_t peak_bytes = 0;        // of the fullest rank
  bool fits = false;             // then also:
  int64_t sent_bytes = 0;        // in a step, by the rank that sends most
  double step_seconds = 0, tokens_per_second = 0, bubble_percent = 0;
};

/// Below so many per cent communication counts as hidden.
inline constexpr double kHiddenPercent = 5;

struct Tuning {
  std::vector<TunedSetting> settings;  // those that fit, most tokens a second first; then those that do not
  double budget_bytes = 0;
  /// Of the settings whose communication is hidden, the one that changes least, then the fastest; absent: none.
  const TunedSetting* first_hidden() const;
};

/// Plans every way to share a config's ranks out over rings, in every layout, with fewer KV heads where keys and values
/// travel, and in more pieces a hop where those are faster; if none of these is hidden without another model, windows
/// twice as long, and again, as long as any fits. A policy that recomputes more, and smaller chunks, where the config's own
/// do not fit. More windows a step where the rings could not share them evenly. Windows of one document each.
/// threads_per_rank, cores: as of make_plan.
Tuning tune(const Config& config, const GptConfig& gpt, const Rates& rates, double budget_bytes, int threads_per_rank,
            int cores);

/// What steps of the trainer's own parts took on this machine.
struct MeasuredSteps {
  double step_seconds = 0, bubble_percent = 0;  // median of the steps; mean of the ranks
  int64_t peak_bytes = 0;                       // of the fullest rank
};

/// Three steps, after one to warm up, on made-up text; over config.run.link where there is one.
MeasuredSteps measure_steps(const TunedSetting& setting);

/// At most four settings to measure: the first that is hidden, then the fastest.
std::vector<const TunedSetting*> settings_to_measure(const Tuning& tuning);

struct Measurement {
  const TunedSetting* setting;
  MeasuredSteps steps;
};

/// For people, without a line break at the end.
std::string tuning_text(const Tuning& tuning, const Rates& rates);
std::string measurements_text(const std::vector<Measurement>& measurements);
nlohmann::ordered_json to_json(const Tuning& tuning, const Rates& rates, const std::vector<Measurement>& measurements);

}  // namespace ringlet
