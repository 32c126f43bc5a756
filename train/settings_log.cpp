#include "train/settings_log.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <fstream>
#include <nlohmann/json.hpp>
#include <span>
#include <sstream>

#include "kernels/check.h"

namespace ringlet {
namespace {

using LogLine = nlohmann::ordered_json;

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

void check_same(const StudySettings& old_settings, const StudySettings& settings,
                const std::filesystem::path& folder) {
  StudySettings all = settings;
  all.insert(old_settings.begin(), old_settings.end());
  const auto text_of = [](const StudySettings& of, const std::string& name) {
    const auto found = of.find(name);
    return found == of.end() ? std::string() : found->second;
  };
  for (const auto& [name, ignored] : all) {
    const std::string old_text = text_of(old_settings, name), text = text_of(settings, name);
    if (old_text == text) continue;
    throw Error(fmt::format("{} holds a study with another {}: {}", folder.string(), name,
                            difference(old_text, text)),
                "give the same settings to go on with it, or another folder with -o");
  }
}

/// The folder as it may be written to: absent, empty, or a study's.
std::filesystem::path accepted(std::filesystem::path folder, const LogKind& kind) {
  std::error_code ignored;
  const bool study = std::filesystem::exists(folder / kind.file, ignored);
  // Its lock is all that a study leaves that was killed before its first line.
  for (const auto& entry : std::filesystem::directory_iterator(folder, ignored)) {
    if (study || entry.path().filename() == "lock") continue;
    throw Error(fmt::format("{} is not a study's folder: it holds {}", folder.string(),
                            entry.path().filename().string()),
                "give a new folder with -o");
  }
  create_folders(folder);
  return folder;
}

void write_line(const Descriptor& file, const LogLine& json, const std::filesystem::path& path) {
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

}  // namespace

StudySettings read_log(const std::filesystem::path& folder, const LogKind& kind,
                       const std::function<void(const LogLine& line)>& add) {
  const std::filesystem::path path = folder / kind.file;
  std::ifstream lines(path);
  if (!lines)
    throw Error(folder.string() + " holds no study", std::string(kind.maker) + " makes one");
  StudySettings settings;
  int number = 0;
  for (std::string line;
       std::getline(lines, line) && !lines.eof();) {  // eof: its newline is not there
    ++number;
    try {
      const LogLine json = LogLine::parse(line);
      if (number > 1) {
        add(json);
      } else {
        if (json.at(kind.format) != kind.version) throw Error("another version");
        settings = json.at("settings").get<StudySettings>();
      }
    } catch (const std::exception&) {
      throw Error(fmt::format("line {} of {} is not {}", number, path.string(),
                              number == 1 ? "a study's head" : kind.entry),
                  number == 1 ? "give a study's folder, or a new one"
                              : fmt::format("delete that line: {} is made anew", kind.entry));
    }
  }
  return settings;
}

SettingsLog::SettingsLog(std::filesystem::path folder, const LogKind& kind,
                         const StudySettings& settings,
                         const std::function<void(const LogLine& line)>& add)
    : folder_(accepted(std::move(folder), kind)),
      path_(folder_ / kind.file),
      lock_(folder_ / "lock", "measures in " + folder_.string()),
      file_(path_, O_WRONLY | O_CREAT | O_APPEND) {
  const StudySettings there = read_log(folder_, kind, add);
  if (!there.empty()) check_same(there, settings, folder_);
  if (::ftruncate(file_.get(), whole_bytes(path_)) != 0) fail_on_file("write", path_, errno);
  if (!there.empty()) return;
  write_line(file_, LogLine{{kind.format, kind.version}, {"settings", settings}}, path_);
  sync_folder(folder_);
}

void SettingsLog::append(const LogLine& line) { write_line(file_, line, path_); }

std::string csv_text(const std::string& text) {
  std::string quoted = "\"";
  for (const char c : text) quoted += c == '"' ? "\"\"" : std::string(1, c);
  return quoted + '"';
}

}  // namespace ringlet
