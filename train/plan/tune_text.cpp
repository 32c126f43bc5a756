#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "train/console.h"
#include "train/plan/tune.h"

namespace ringlet {
namespace {

constexpr int64_t kMostRows = 24, kMostRowsWithoutRoom = 6;

const char* name_of(Change change) {
  constexpr std::array<const char*, 4> kNames{"nothing", "batch", "context", "the model"};
  return kNames[size_t(change)];
}

std::string split_text(const Config& config) {
  return fmt::format("{} x {}", config.run.ring_size(), config.run.ranks / config.run.ring_size());
}

std::string memory_text(const TunedSetting& setting) {
  const Config::Memory& memory = setting.config.memory;
  const auto is_chunk = [](const std::string& set) { return set.find("_chunk=") != std::string::npos; };
  std::string text = ringlet::name_of(memory.recompute);
  if (memory.zero_stage == 2) text += ", ZeRO-2";
  if (std::ranges::any_of(setting.set, is_chunk)) text += fmt::format(", {}/{}", memory.mlp_chunk, memory.head_chunk);
  return text;
}

std::vector<std::string> row_of(const TunedSetting& setting, double budget_bytes) {
  const Config& config = setting.config;
  std::vector<std::string> row{split_text(config), ringlet::name_of(config.run.layout), std::to_string(config.run.seq_len),
                               std::to_string(setting.rows), std::to_string(setting.pieces),
                               std::to_string(config.train.batch_windows),
                               std::to_string(setting.gpt.heads.kv_heads), memory_text(setting)};
  if (setting.fits) {
    const double ms = 1e3 * setting.step_seconds;
    row.insert(row.end(), {human_count(setting.tokens_per_second), fmt::format("{:.4g}", ms),
                           fmt::format("{:.1f} %", setting.bubble_percent), human_bytes(double(setting.peak_bytes)),
                           human_bytes(double(setting.sent_bytes)),
                           setting.set.empty() ? "as configured" : name_of(setting.change)});
  } else {
    row.insert(row.end(), {"", "", "", human_bytes(double(setting.peak_bytes)), "",
                           fmt::format("does not fit into {}", human_bytes(budget_bytes))});
  }
  return row;
}

std::string set_text(const std::vector<std::string>& set) {
  return fmt::format("--set {}", fmt::join(set, " --set "));
}

/// The first rows of each part; the config's own is always among them.
std::string table_text(const Tuning& tuning) {
  std::vector<std::vector<std::string>> table{{"ring x data", "layout", "T", "tokens a rank", "pieces", "windows", "KV heads",
                                               "recompute", "tokens/s", "step ms", "bubble", "peak", "sent",
                                               "changes"}};
  int64_t shown = 0, fitting = 0, without_room = 0;
  for (const TunedSetting& setting : tuning.settings) {
    const bool room = setting.fits ? fitting++ < kMostRows : without_room++ < kMostRowsWithoutRoom;
    if (!room && !setting.set.empty() && &setting != tuning.first_hidden()) continue;
    table.push_back(row_of(setting, tuning.budget_bytes));
    ++shown;
  }
  std::string text = format_table(table);
  if (const int64_t all = std::ssize(tuning.settings); shown < all) {
    text += fmt::format("and {} more, which --json prints\n", all - shown);
  }
  return text;
}

}  // namespace

std::string tuning_text(const Tuning& tuning, const Rates& rates) {
  const TunedSetting& best = tuning.settings.front();
  std::string text = fmt::format(
      "{} settings for {} ranks over {} ({:.4g} GB/s, {:.3g} us) were planned; windows of one document each\n"
      "rates: {}; {}\n\n{}",
      tuning.settings.size(), best.config.run.ranks, rates.link.name, rates.link.bytes_per_second / 1e9,
      1e6 * rates.link.latency_seconds, rates.device, rates.source_text(), table_text(tuning));
  if (const TunedSetting* first = tuning.first_hidden()) {
    text += fmt::format("\nthe least change that hides communication (bubble {:.1f} %, below {:.0f} %): {}",
                        first->bubble_percent, kHiddenPercent, first->set.empty() ? "none, the config as it is"
                                                                                  : set_text(first->set));
    if (first->change > Change::nothing) text += fmt::format("\n  it changes {}", name_of(first->change));
  } else {
    const TunedSetting* least = nullptr;
    for (const TunedSetting& setting : tuning.settings) {
      if (setting.fits && (least == nullptr || setting.bubble_percent < least->bubble_percent)) least = &setting;
    }
    text += fmt::format("\nno setting that fits has a bubble below {:.0f} %; the least is {:.1f} %: {}", kHiddenPercent,
                        least->bubble_percent, least->set.empty() ? "the config as it is" : set_text(least->set));
  }
  return text;
}

std::string measurements_text(const std::vector<Measurement>& measurements) {
  const std::string& link = measurements.front().setting->config.run.link;
  const std::string heading = link.empty() ? "measured here" : fmt::format("measured here, emulated link {}", link);
  std::vector<std::vector<std::string>> table{
      {heading, "predicted ms", "measured ms", "ratio", "predicted bubble", "measured", "predicted peak", "measured"}};
  for (const auto& [setting, steps] : measurements) {
    table.push_back({setting->set.empty() ? "as configured" : set_text(setting->set),
                     fmt::format("{:.4g}", 1e3 * setting->step_seconds),
                     fmt::format("{:.4g}", 1e3 * steps.step_seconds),
                     fmt::format("{:.3f}", setting->step_seconds / steps.step_seconds),
                     fmt::format("{:.1f} %", setting->bubble_percent), fmt::format("{:.1f} %", steps.bubble_percent),
                     fmt::format("{} B", setting->peak_bytes), fmt::format("{} B", steps.peak_bytes)});
  }
  return format_table(table) + "three steps each, after one to warm up, the trainer's own, on made-up text";
}

nlohmann::ordered_json to_json(const Tuning& tuning, const Rates& rates, const std::vector<Measurement>& measurements) {
  nlohmann::ordered_json json{{"tried", tuning.settings.size()}, {"device", rates.device}, {"source", rates.source},
                              {"link", {{"name", rates.link.name}, {"bytes_per_second", rates.link.bytes_per_second},
                                        {"latency_seconds", rates.link.latency_seconds}}},
                              {"budget_bytes", int64_t(tuning.budget_bytes)}};
  for (const TunedSetting& setting : tuning.settings) {
    const Config& config = setting.config;
    nlohmann::ordered_json one{{"set", setting.set}, {"changes", name_of(setting.change)}, {"ring", config.run.ring_size()},
                               {"rings", config.run.ranks / config.run.ring_size()},
                               {"layout", ringlet::name_of(config.run.layout)}, {"seq_len", config.run.seq_len},
                               {"tokens_per_rank", setting.rows}, {"pieces", setting.pieces},
                               {"batch_windows", config.train.batch_windows},
                               {"kv_heads", setting.gpt.heads.kv_heads},
                               {"recompute", ringlet::name_of(config.memory.recompute)},
                               {"zero_stage", config.memory.zero_stage},
                               {"mlp_chunk", config.memory.mlp_chunk}, {"head_chunk", config.memory.head_chunk},
                               {"peak_bytes", setting.peak_bytes}, {"fits", setting.fits}};
    if (setting.fits) {
      one["step_seconds"] = setting.step_seconds;
      one["tokens_per_second"] = setting.tokens_per_second;
      one["bubble_percent"] = setting.bubble_percent;
      one["sent_bytes"] = setting.sent_bytes;
    }
    for (const Measurement& measurement : measurements) {
      if (measurement.setting != &setting) continue;
      one["measured"] = {{"step_seconds", measurement.steps.step_seconds},
                         {"bubble_percent", measurement.steps.bubble_percent},
                         {"peak_bytes", measurement.steps.peak_bytes}, {"emulated_link", config.run.link}};
    }
    json["settings"].push_back(std::move(one));
  }
  const TunedSetting* first = tuning.first_hidden();
  json["first_hidden"] = first == nullptr ? nlohmann::ordered_json() : nlohmann::ordered_json(first->set);
  return json;
}

}  // namespace ringlet
