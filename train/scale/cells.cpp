#include "train/scale/cells.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "kernels/check.h"

namespace ringlet {
namespace {

using Json = nlohmann::ordered_json;

constexpr const char* kFormat = "ringlet_study";
constexpr int kVersion = 1;
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
  for (const CellField& field : cell_fields()) {
    const Json& value = json.at(field.name);
    if (!value.is_null()) cell.*field.value = value;
  }
  const bool measured = cell.step_ms > 0 && cell.peak_bytes > 0 && cell.cores > 0 && cell.ring >= 1;
  if (cell.seq_len < 1 || cell.ranks < 1 || (std::isfinite(cell.ring) && cell.ring < 1) ||
      (cell.status == CellStatus::done && !measured)) {
    throw Error("a cell without its numbers");
  }
  return cell;
}

/// What two settings differ in: of a text of several lines the first line that does.
std::string difference(const std::string& old_text, const std::string& new_text) {
  std::istringstream old_lines(old_text), new_lines(new_text);
  std::string before, now;
  do {
    if (!std::getline(old_lines, before)) before = "nothing";
    if (!std::getline(new_lines, now)) now = "nothing";
  } while (before == now && before != "nothing");
  return fmt::format("\"{}\" there, \"{}\" here", before, now);
}

void check_same(const StudySettings& old_settings, const StudySettings& settings, const std::filesystem::path& folder) {
  for (const auto& [name, text] : settings) {
    const auto old = old_settings.find(name);
    const std::string old_text = old == old_settings.end() ? "" : old->second;
    if (old_text == text) continue;
    throw Error(fmt::format("{} holds a study with another {}: {}", folder.string(), name, difference(old_text, text)),
                "give the same settings to go on with it, or another folder with -o");
  }
}

/// The folder as it may be written to: absent, empty, or a study's.
std::filesystem::path accepted(std::filesystem::path folder) {
  std::error_code ignored;
  const bool study = std::filesystem::exists(cells_path(folder), ignored);
  // Its lock is all that a study leaves that was killed before its first line.
  for (const auto& entry : std::filesystem::directory_iterator(folder, ignored)) {
    if (study || entry.path().filename() == "lock") continue;
    throw Error(fmt::format("{} is not a study's folder: it holds {}", folder.string(), entry.path().filename().string()),
                "give a new folder with -o");
  }
  create_folders(folder);
  return folder;
}

void write_line(const Descriptor& file, const Json& json, const std::filesystem::path& path) {
  const std::string line = json.dump() + '\n';
  write_all(file.get(), std::as_bytes(std::span(line)), path);
  if (::fsync(file.get()) != 0) fail_on_file("write to disk", path, errno);
}

/// The length of a file up to its last whole line.
int64_t whole_bytes(const std::filesystem::path& path) {
  std::ifstream stream(path, std::ios::binary);
  const std::string text((std::istreambuf_iterator<char>(stream)), {});
  return int64_t(text.rfind('\n') + 1);
}

std::string csv_text(const std::string& text) {
  std::string quoted = "\"";
  for (const char c : text) quoted += c == '"' ? "\"\"" : std::string(1, c);
  return quoted + '"';
}

}  // namespace

const char* name_of(CellStatus status) { return kStatuses[size_t(status)]; }

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
  };
  return kFields;
}

Json to_json(const Cell& cell) {
  Json json{{"seq_len", cell.seq_len}, {"ranks", cell.ranks}, {"layout", cell.layout},
            {"status", name_of(cell.status)}, {"reason", cell.reason}};
  for (const CellField& field : cell_fields()) {
    const double value = cell.*field.value;
    json[field.name] = std::isfinite(value) ? Json(value) : Json();
  }
  return json;
}

std::filesystem::path cells_path(const std::filesystem::path& folder) { return folder / "cells.jsonl"; }

CellsOfStudy read_cells(const std::filesystem::path& folder) {
  const std::filesystem::path path = cells_path(folder);
  std::ifstream lines(path);
  if (!lines) throw Error(folder.string() + " holds no study", "`ringlet scale CONFIG.toml -o DIR` makes one");
  CellsOfStudy study;
  int number = 0;
  for (std::string line; std::getline(lines, line) && !lines.eof();) {  // eof: its newline is not there
    ++number;
    try {
      const Json json = Json::parse(line);
      if (number > 1) {
        study.cells.push_back(cell_from(json));
      } else {
        if (json.at(kFormat) != kVersion) throw Error("another version");
        study.settings = json.at("settings").get<StudySettings>();
      }
    } catch (const std::exception&) {
      throw Error(fmt::format("line {} of {} is not {}", number, path.string(), number == 1 ? "a study's head" : "a cell"),
                  number == 1 ? "give a study's folder, or a new one" : "delete that line: its cell is measured anew");
    }
  }
  return study;
}

CellsFile::CellsFile(std::filesystem::path folder, const StudySettings& settings)
    : folder_(accepted(std::move(folder))),
      lock_(folder_ / "lock", "measures in " + folder_.string()),
      file_(cells_path(folder_), O_WRONLY | O_CREAT | O_APPEND) {
  const std::filesystem::path path = cells_path(folder_);
  CellsOfStudy study = read_cells(folder_);
  if (!study.settings.empty()) check_same(study.settings, settings, folder_);
  if (::ftruncate(file_.get(), whole_bytes(path)) != 0) fail_on_file("write", path, errno);
  if (study.settings.empty()) {
    write_line(file_, Json{{kFormat, kVersion}, {"settings", settings}}, path);
    sync_folder(folder_);
  }
  cells_ = std::move(study.cells);
}

bool CellsFile::has(int64_t seq_len, int64_t ranks) const {
  return std::ranges::any_of(cells_, [&](const Cell& cell) { return cell.seq_len == seq_len && cell.ranks == ranks; });
}

void CellsFile::append(const Cell& cell) {
  write_line(file_, to_json(cell), cells_path(folder_));
  cells_.push_back(cell);
}

std::string to_csv(std::span<const Cell> cells) {
  std::string text = "seq_len,ranks,layout,status,reason";
  for (const CellField& field : cell_fields()) text += std::string(",") + field.name;
  text += '\n';
  for (const Cell& cell : cells) {
    text += fmt::format("{},{},{},{},{}", cell.seq_len, cell.ranks, cell.layout, name_of(cell.status),
                        cell.reason.empty() ? "" : csv_text(cell.reason));
    for (const CellField& field : cell_fields()) {
      const double value = cell.*field.value;
      text += std::isfinite(value) ? fmt::format(",{}", value) : ",";
    }
    text += '\n';
  }
  return text;
}

}  // namespace ringlet
