#pragma once

#include <filesystem>
#include <functional>
#include <map>
#include <nlohmann/json_fwd.hpp>
#include <string>

#include "train/run_folder.h"

namespace ringlet {

/// What everything in a folder shares: "config", "steps", ..., each as text.
using StudySettings = std::map<std::string, std::string>;

/// A file of JSON lines that makes a folder a study's: the settings, then a line for each thing
/// that was done.
struct LogKind {
  const char* file;    // its name in the folder
  const char* format;  // the key of its head, which has the version
  int version;
  const char* maker;  // what makes such a folder, for advice
  const char* entry;  // "a cell": what a line is
};

/// Reads the settings, and gives each whole line to `add`; a last line that was cut off by a kill
/// does not count. Throws Error that names the line which is damaged, or which `add` does not take.
StudySettings read_log(const std::filesystem::path& folder, const LogKind& kind,
                       const std::function<void(const nlohmann::ordered_json& line)>& add);

/// Such a file under write. Nobody else writes to the folder as long as this lives.
class SettingsLog {
 public:
  /// Goes on with what is there, which `add` gets. Throws Error when the folder holds something
  /// else, or was begun with other settings (says which).
  SettingsLog(std::filesystem::path folder, const LogKind& kind, const StudySettings& settings,
              const std::function<void(const nlohmann::ordered_json& line)>& add);
  /// The line is durable on return.
  void append(const nlohmann::ordered_json& line);

 private:
  std::filesystem::path folder_, path_;
  FileLock lock_;
  Descriptor file_;
};

/// A text in quotes, as a field of CSV.
std::string csv_text(const std::string& text);

}  // namespace ringlet
