#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string_view>

#include "train/files.h"

namespace ringlet {

/// An exclusive lock on a file that lasts as long as this object and its process, whichever ends
/// first.
class FileLock {
 public:
  /// Does not wait. Throws Error "another ringlet (pid N) `doing`" when it is taken.
  FileLock(const std::filesystem::path& path, std::string_view doing);

 private:
  Descriptor file_;
};

/// follow: of a process whose rank 0 is another process, which holds the folder.
enum class RunStart : uint8_t { fresh, resume, follow };

/// runs/NAME: lock, config.toml (resolved), metrics.jsonl (one object a step), checkpoints/,
/// report.html. Rank 0 holds it for the whole run; its lock keeps every other run out.
class RunFolder {
 public:
  /// Creates the folder if need be. A fresh start drops the metrics of a run that never came to a
  /// checkpoint. Throws Error: not writable, in use by another process, or a fresh start where
  /// checkpoints already are. To follow touches nothing: such a folder writes nothing but checkpoints, together with
  /// the others.
  RunFolder(std::filesystem::path folder, RunStart start);

  const std::filesystem::path& path() const { return folder_; }
  std::filesystem::path checkpoints() const { return folder_ / "checkpoints"; }
  std::filesystem::path config_path() const { return folder_ / "config.toml"; }
  std::filesystem::path metrics_path() const { return folder_ / "metrics.jsonl"; }

  /// Does this one write config and metrics? Who follows may not ask it to.
  bool leads() const { return lock_.has_value(); }

  /// Atomic and durable.
  void write_config(std::string_view resolved_toml) const;

  /// Do the metrics have a line of the validation loss after this step?
  bool has_evaluation(int64_t step) const;
  /// One line, a JSON object with a "step", without its newline. It is in the file when the call
  /// returns.
  void append_metrics(std::string_view line) const;

  /// Drops the lines of steps after `last_step`, which will be computed again, and a line that was
  /// cut off by a kill. Readers see the old file or the new one.
  void cut_metrics(int64_t last_step);

 private:
  std::filesystem::path folder_;
  std::optional<FileLock> lock_;
  std::optional<Descriptor> metrics_;  // as lock_, absent in one that follows
};

}  // namespace ringlet
