#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace ringlet {

/// The names in a checkpoints folder:
///
///   step_00000100           a checkpoint
///   step_00000100.tmp       a save under way, or one that was killed
///   step_00000100.replaced  the checkpoint that was there when another of the same step was saved
///   .trash-NAME             on its way out
std::string step_name(int64_t step);
std::filesystem::path temporary_folder(const std::filesystem::path& checkpoints, int64_t step);
std::filesystem::path replaced_folder(const std::filesystem::path& checkpoints, int64_t step);

struct StepFolder {
  std::filesystem::path path;
  int64_t step = 0;
  bool replaced = false;
};

/// Checkpoints, whole or not, newest first, a replaced one after its replacement. Empty when there
/// is no folder.
std::vector<StepFolder> step_folders(const std::filesystem::path& checkpoints);

/// What killed saves and interrupted deletions left behind.
std::vector<std::filesystem::path> leftovers(const std::filesystem::path& checkpoints);

/// Deletes a folder so that no half of it ever stands under its own name: renamed first. Throws
/// Error.
void discard(const std::filesystem::path& folder);

}  // namespace ringlet
