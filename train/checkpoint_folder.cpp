#include "train/checkpoint_folder.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <optional>
#include <string_view>
#include <system_error>

#include "train/files.h"

namespace ringlet {
namespace {

constexpr std::string_view kPrefix = "step_", kReplaced = ".replaced", kTemporary = ".tmp",
                           kTrash = ".trash-";

std::vector<std::filesystem::path> entries(const std::filesystem::path& folder) {
  std::vector<std::filesystem::path> paths;
  std::error_code error;
  std::filesystem::directory_iterator entry(folder, error);
  if (error == std::errc::no_such_file_or_directory) return paths;
  while (!error && entry != std::filesystem::directory_iterator()) {
    paths.push_back(entry->path());
    entry.increment(error);
  }
  if (error) fail_on_file("list", folder, error.value());
  return paths;
}

/// The N of "step_N".
std::optional<int64_t> step_named(std::string_view name) {
  if (!name.starts_with(kPrefix)) return std::nullopt;
  int64_t step = 0;
  const char* end = name.data() + name.size();
  const auto [stop, error] = std::from_chars(name.data() + kPrefix.size(), end, step);
  if (error != std::errc() || stop != end || step < 0) return std::nullopt;
  return step;
}

bool is_leftover(std::string_view name) {
  if (name.starts_with(kTrash)) return true;
  if (!name.ends_with(kTemporary)) return false;
  name.remove_suffix(kTemporary.size());
  return step_named(name).has_value();
}

void remove_tree(const std::filesystem::path& folder) {
  std::error_code error;
  std::filesystem::remove_all(folder, error);
  if (error) fail_on_file("delete", folder, error.value());
}

}  // namespace

std::string step_name(int64_t step) { return fmt::format("{}{:08}", kPrefix, step); }

std::filesystem::path temporary_folder(const std::filesystem::path& checkpoints, int64_t step) {
  return checkpoints / (step_name(step) + std::string(kTemporary));
}

std::filesystem::path replaced_folder(const std::filesystem::path& checkpoints, int64_t step) {
  return checkpoints / (step_name(step) + std::string(kReplaced));
}

std::vector<StepFolder> step_folders(const std::filesystem::path& checkpoints) {
  std::vector<StepFolder> folders;
  for (const auto& path : entries(checkpoints)) {
    std::string name = path.filename().string();
    const bool replaced = name.ends_with(kReplaced);
    if (replaced) name.resize(name.size() - kReplaced.size());
    if (const auto step = step_named(name)) folders.push_back({path, *step, replaced});
  }
  std::sort(folders.begin(), folders.end(), [](const StepFolder& a, const StepFolder& b) {
    return a.step != b.step ? a.step > b.step : a.path < b.path;
  });
  return folders;
}

std::vector<std::filesystem::path> leftovers(const std::filesystem::path& checkpoints) {
  std::vector<std::filesystem::path> found;
  for (const auto& path : entries(checkpoints)) {
    if (is_leftover(path.filename().string())) found.push_back(path);
  }
  return found;
}

void discard(const std::filesystem::path& folder) {
  if (folder.filename().string().starts_with(kTrash)) return remove_tree(folder);
  const auto trash = folder.parent_path() / (std::string(kTrash) + folder.filename().string());
  remove_tree(trash);
  rename_path(folder, trash);
  remove_tree(trash);
}

}  // namespace ringlet
