#include "train/scale/cells.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>

#include "kernels/check.h"
#include "train/quantile.h"

namespace ringlet {
namespace {

using Json = nlohmann::ordered_json;

constexpr LogKind kCellsLog{.file = "cells.jsonl", .format = "ringlet_study", .version = 2,  // 1: a line was a whole cell
                            .maker = "`ringlet scale CONFIG.toml -o DIR`", .entry = "a cell"};
constexpr std::array kStatuses{"done", "impossible", "failed"};

Cell cell_from(const Json& json) {
  Cell cell;
  cell.seq_len = json.at("seq_len");
  cell.ranks = json.at("ranks");
  cell.layout = json.at("layout");
  const auto status = std::ranges::find(kStatuses, json.at("status").get<std::string>());
  if (status == kStatuses.end()) throw Error("a status that is not known");
  cell.status = CellStatus(status - kStatuses.begin());
  cell.reason = json.at("reason");
  cell.peak_moment = json.at("peak_moment");
  cell.gradient_note = json.at("gradient_note");
  cell.step_samples_ms = json.at("step_samples_ms").get<std::vector<double>>();
  for (const CellField& field : cell_fields()) {
    const auto value = json.find(field.name);  // older studies know fewer
    if (value != json.end() && !value->is_null()) cell.*field.value = *value;
  }
  const bool measured = cell.step_ms > 0 && !cell.step_samples_ms.empty() && cell.peak_bytes > 0 &&
                        cell.cores > 0 && cell.ring >= 1;
  if (cell.seq_len < 1 || cell.ranks < 1 || (std::isfinite(cell.ring) && cell.ring < 1) ||
      (cell.status == CellStatus::done && !measured)) {
    throw Error("a cell without its numbers");
  }
  return cell;
}

/// The visits of one cell as one.
Cell merged(const std::vector<Cell>& visits) {
  const auto lost = std::ranges::find_if(visits, [](const Cell& cell) { return cell.status != CellStatus::done; });
  if (lost != visits.end()) return *lost;
  Cell cell = visits.front();
  for (const CellField& field : cell_fields()) {
    std::vector<double> known;
    for (const Cell& visit : visits) {
      if (std::isfinite(visit.*field.value)) known.push_back(visit.*field.value);
    }
    cell.*field.value = median(known);
  }
  for (size_t i = 1; i < visits.size(); ++i) {
    const std::vector<double>& more = visits[i].step_samples_ms;
    cell.step_samples_ms.insert(cell.step_samples_ms.end(), more.begin(), more.end());
    if (cell.gradient_note.empty()) cell.gradient_note = visits[i].gradient_note;
  }
  derive_speed(cell);
  return cell;
}

}  // namespace

const char* name_of(CellStatus status) { return kStatuses[size_t(status)]; }

void derive_speed(Cell& cell) {
  cell.steps = double(cell.step_samples_ms.size());
  cell.step_ms = quantile(cell.step_samples_ms, 0.5);
  cell.step_ms_p10 = quantile(cell.step_samples_ms, 0.1);
  cell.step_ms_p90 = quantile(cell.step_samples_ms, 0.9);
  cell.tokens_per_second = 1e3 * cell.tokens_per_step / cell.step_ms;
  cell.tokens_per_second_per_rank = cell.tokens_per_second / double(cell.ranks);
  const double step_peak_flops = 1e6 * cell.peak_gflops * cell.step_ms;
  cell.mfu_percent = 100 * cell.model_flops / step_peak_flops;
  cell.mfu_palm_percent = 100 * cell.palm_flops / step_peak_flops;
  cell.hfu_percent = 100 * cell.executed_flops / step_peak_flops;
}

std::vector<Cell> merge_visits(std::span<const Cell> visits) {
  std::vector<Cell> cells;
  for (const Cell& first : visits) {
    const auto same = [&](const Cell& other) { return other.seq_len == first.seq_len && other.ranks == first.ranks; };
    if (std::ranges::any_of(cells, same)) continue;
    std::vector<Cell> own;
    std::ranges::copy_if(visits, std::back_inserter(own), same);
    cells.push_back(merged(own));
  }
  return cells;
}

std::span<const CellField> cell_fields() {
  static constexpr std::array kFields{
      CellField{"ring", &Cell::ring},
      CellField{"tokens_per_rank", &Cell::tokens_per_rank},
      CellField{"threads_per_rank", &Cell::threads_per_rank},
      CellField{"cores", &Cell::cores},
      CellField{"tokens_per_step", &Cell::tokens_per_step},
      CellField{"steps", &Cell::steps},
      CellField{"step_ms", &Cell::step_ms},
      CellField{"step_ms_p10", &Cell::step_ms_p10},
      CellField{"step_ms_p90", &Cell::step_ms_p90},
      CellField{"predicted_step_ms", &Cell::predicted_step_ms},
      CellField{"predicted_ratio", &Cell::predicted_ratio},
      CellField{"tokens_per_second", &Cell::tokens_per_second},
      CellField{"tokens_per_second_per_rank", &Cell::tokens_per_second_per_rank},
      CellField{"mfu_percent", &Cell::mfu_percent},
      CellField{"mfu_palm_percent", &Cell::mfu_palm_percent},
      CellField{"hfu_percent", &Cell::hfu_percent},
      CellField{"strong_percent", &Cell::strong_percent},
      CellField{"weak_percent", &Cell::weak_percent},
      CellField{"ideal_percent", &Cell::ideal_percent},
      CellField{"exposed_ms", &Cell::exposed_ms},
      CellField{"bubble_percent", &Cell::bubble_percent},
      CellField{"predicted_bubble_percent", &Cell::predicted_bubble_percent},
      CellField{"imbalance", &Cell::imbalance},
      CellField{"attention_ms", &Cell::attention_ms},
      CellField{"ring_wait_ms", &Cell::ring_wait_ms},
      CellField{"peak_bytes", &Cell::peak_bytes},
      CellField{"predicted_peak_bytes", &Cell::predicted_peak_bytes},
      CellField{"sent_bytes", &Cell::sent_bytes},
      CellField{"predicted_sent_bytes", &Cell::predicted_sent_bytes},
      CellField{"model_flops", &Cell::model_flops},
      CellField{"palm_flops", &Cell::palm_flops},
      CellField{"executed_flops", &Cell::executed_flops},
      CellField{"peak_gflops", &Cell::peak_gflops},
      CellField{"gradient_error", &Cell::gradient_error},
      CellField{"gradient_tolerance", &Cell::gradient_tolerance},
  };
  return kFields;
}

Json to_json(const Cell& cell) {
  Json json{{"seq_len", cell.seq_len}, {"ranks", cell.ranks}, {"layout", cell.layout},
            {"status", name_of(cell.status)}, {"reason", cell.reason}, {"peak_moment", cell.peak_moment},
            {"gradient_note", cell.gradient_note}, {"step_samples_ms", cell.step_samples_ms}};
  for (const CellField& field : cell_fields()) {
    const double value = cell.*field.value;
    json[field.name] = std::isfinite(value) ? Json(value) : Json();
  }
  return json;
}

std::filesystem::path cells_path(const std::filesystem::path& folder) { return folder / kCellsLog.file; }

CellsOfStudy read_cells(const std::filesystem::path& folder) {
  CellsOfStudy study;
  study.settings = read_log(folder, kCellsLog, [&](const Json& line) { study.visits.push_back(cell_from(line)); });
  return study;
}

CellsFile::CellsFile(const std::filesystem::path& folder, const StudySettings& settings)
    : log_(folder, kCellsLog, settings, [this](const Json& line) { visits_.push_back(cell_from(line)); }) {}


bool CellsFile::has(int64_t seq_len, int64_t ranks, int64_t earlier) const {
  int64_t visits = 0;
  for (const Cell& visit : visits_) {
    if (visit.seq_len != seq_len || visit.ranks != ranks) continue;
    if (visit.status != CellStatus::done || ++visits > earlier) return true;
  }
  return false;
}

void CellsFile::append(const Cell& visit) {
  log_.append(to_json(visit));
  visits_.push_back(visit);
}

std::string to_csv(std::span<const Cell> cells) {
  std::string text = "seq_len,ranks,layout,status,reason,peak_moment,gradient_note";
  for (const CellField& field : cell_fields()) text += std::string(",") + field.name;
  text += '\n';
  for (const Cell& cell : cells) {
    text += fmt::format("{},{},{},{}", cell.seq_len, cell.ranks, cell.layout, name_of(cell.status));
    for (const std::string& words : {cell.reason, cell.peak_moment, cell.gradient_note}) {
      text += ',' + (words.empty() ? "" : csv_text(words));
    }
    for (const CellField& field : cell_fields()) {
      const double value = cell.*field.value;
      text += std::isfinite(value) ? fmt::format(",{}", value) : ",";
    }
    text += '\n';
  }
  return text;
}

}  // namespace ringlet
