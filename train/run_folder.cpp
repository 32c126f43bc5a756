#include "train/run_folder.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <system_error>

#include "kernels/check.h"
#include "train/checkpoint.h"

namespace ringlet {
namespace {

std::filesystem::path created(std::filesystem::path folder) {
  create_folders(folder);
  return folder;
}

Descriptor open_metrics(const std::filesystem::path& path) {
  return {path, O_WRONLY | O_CREAT | O_APPEND};
}

bool is_kept(const std::string& line, int64_t last_step) {
  const auto value = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
  if (!value.is_object()) return false;
  const auto step = value.find("step");
  return step == value.end() || !step->is_number() || step->get<int64_t>() <= last_step;
}

}  // namespace

FileLock::FileLock(const std::filesystem::path& path, std::string_view doing)
    : file_(path, O_RDWR | O_CREAT) {
  if (::flock(file_.get(), LOCK_EX | LOCK_NB) == 0) {
    const std::string pid = fmt::format("{}\n", ::getpid());
    if (::ftruncate(file_.get(), 0) != 0) fail_on_file("write", path, errno);
    write_all(file_.get(), std::as_bytes(std::span(pid)), path);
    return;
  }
  // Some network file systems have no locks: no reason not to train on them.
  if (errno == ENOLCK || errno == ENOSYS || errno == EOPNOTSUPP) return;
  if (errno != EWOULDBLOCK) fail_on_file("lock", path, errno);
  std::string pid = read_text(path, 64);
  while (!pid.empty() && pid.back() == '\n') pid.pop_back();
  throw Error(fmt::format("another ringlet (pid {}) {}", pid, doing),
              "wait for it or stop it, or choose another run name");
}

RunFolder::RunFolder(std::filesystem::path folder, RunStart start)
    : folder_(start == RunStart::follow ? std::move(folder) : created(std::move(folder))) {
  if (start == RunStart::follow) return;
  lock_.emplace(folder_ / "lock", fmt::format("trains in {}", folder_.string()));
  metrics_.emplace(open_metrics(metrics_path()));
  if (start == RunStart::resume) return;
  if (has_checkpoints(checkpoints())) {
    throw Error(fmt::format("{} already has checkpoints", folder_.string()),
                "continue it with --resume, or start a new run under another name");
  }
  if (::ftruncate(metrics_->get(), 0) != 0) fail_on_file("write", metrics_path(), errno);
}

void RunFolder::write_config(std::string_view resolved_toml) const {
  CHECK(leads(), "this process does not write ", config_path().string());
  write_atomically(config_path(), resolved_toml);
}

bool RunFolder::has_evaluation(int64_t step) const {
  std::ifstream lines(metrics_path());
  for (std::string line; std::getline(lines, line);) {
    const auto value = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (value.is_object() && value.contains("eval_loss") && value.value("step", nlohmann::json()) == step) return true;
  }
  return false;
}

void RunFolder::append_metrics(std::string_view line) const {
  CHECK(leads(), "this process does not write ", metrics_path().string());
  std::string text(line);
  text += '\n';  // one write, so that no other line can come between
  write_all(metrics_->get(), std::as_bytes(std::span(text)), metrics_path());
}

void RunFolder::cut_metrics(int64_t last_step) {
  CHECK(leads(), "this process does not write ", metrics_path().string());
  std::filesystem::path temporary = metrics_path();
  temporary += ".tmp";
  std::error_code ignored;  // a leftover, or nothing
  std::filesystem::remove(temporary, ignored);
  OutputFile kept(temporary);
  std::ifstream lines(metrics_path());
  for (std::string line; std::getline(lines, line);) {
    if (is_kept(line, last_step)) kept.write(line + '\n');
  }
  if (lines.bad()) fail_on_file("read", metrics_path(), EIO);
  kept.finish();
  rename_path(temporary, metrics_path());
  sync_folder(folder_);
  metrics_ = open_metrics(metrics_path());
}

}  // namespace ringlet
