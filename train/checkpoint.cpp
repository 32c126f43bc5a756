#include "train/checkpoint.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <system_error>

#include "kernels/check.h"
#include "train/checkpoint_folder.h"
#include "train/files.h"
#include "train/safetensors.h"

namespace ringlet {
namespace {

constexpr int64_t kMaxManifestBytes = 1'000'000'000;
constexpr const char* kAdvice = "use another checkpoint, or restore this one from a copy";

[[noreturn]] void fail_checkpoint(const std::filesystem::path& file, const std::string& reason) {
  throw Error(fmt::format("{} {}", file.string(), reason), kAdvice);
}

/// Elements [first_element, ...) of a tensor of `count` elements; the file must agree with the
/// manifest.
void read_part(const std::filesystem::path& path, const SafetensorsFile& file,
               const std::string& name, int64_t count, int64_t first_element,
               std::span<float> values) {
  const auto found = file.tensors().find(name);
  if (found == file.tensors().end() || found->second.elements != count) {
    fail_checkpoint(path, fmt::format("has no tensor {} of {} elements", name, count));
  }
  file.read(name, first_element, values);
}

std::string shape_text(const std::vector<int64_t>& shape) {
  return fmt::format("[{}]", fmt::join(shape, ", "));
}

bool belongs_to(CheckpointPart part, const FileRecord& file) {
  return part == CheckpointPart::everything || file.name == kModelFile;
}

Checkpoint open_and_verify(const StepFolder& folder, CheckpointPart part) {
  Checkpoint checkpoint = Checkpoint::open(folder.path, part);
  if (checkpoint.info().step != folder.step) {
    fail_checkpoint(folder.path, fmt::format("holds step {}", checkpoint.info().step));
  }
  checkpoint.verify(part);
  return checkpoint;
}

}  // namespace

Checkpoint::Checkpoint(std::filesystem::path folder, Manifest manifest)
    : folder_(std::move(folder)), manifest_(std::move(manifest)) {}

Checkpoint Checkpoint::open(const std::filesystem::path& folder, CheckpointPart part) {
  std::error_code error;
  const auto manifest_path = folder / "manifest.json";
  if (!std::filesystem::is_directory(folder, error)) {
    throw Error(
        fmt::format("no checkpoint at {}", folder.string()),
        "check the path: a checkpoint is a folder such as runs/NAME/checkpoints/step_00000100");
  }
  if (!std::filesystem::exists(manifest_path, error)) {
    fail_checkpoint(folder, "has no manifest.json: half-written, or not a Ringlet checkpoint");
  }
  Manifest manifest = parse_manifest(read_text(manifest_path, kMaxManifestBytes), manifest_path);
  for (const FileRecord& file : manifest.files) {
    if (!belongs_to(part, file)) continue;
    const auto path = folder / file.name;
    const auto bytes = std::filesystem::file_size(path, error);
    if (error) fail_checkpoint(path, fmt::format("cannot be read: {}", error.message()));
    if (bytes != static_cast<uintmax_t>(file.bytes)) {
      fail_checkpoint(path, fmt::format("has {} bytes instead of {}", bytes, file.bytes));
    }
  }
  return {folder, std::move(manifest)};
}

void Checkpoint::verify(CheckpointPart part) const {
  for (const FileRecord& file : manifest_.files) {
    if (!belongs_to(part, file)) continue;
    const Written found = read_back(folder_ / file.name);
    if (found.bytes != file.bytes || found.checksum != file.checksum) {
      fail_checkpoint(folder_ / file.name, "is damaged: wrong checksum");
    }
  }
}

void Checkpoint::read_weights(const std::string& parameter, std::span<float> values) const {
  const auto path = folder_ / kModelFile;
  try {
    read_part(path, SafetensorsFile(path), parameter, static_cast<int64_t>(values.size()), 0, values);
  } catch (const Error&) {
    if (std::error_code unknown; std::filesystem::exists(folder_, unknown)) throw;
    throw Error(folder_.string() + " is gone: its run has saved newer ones since",
                "do the same again; a larger checkpoint.keep leaves more time");
  }
}

void Checkpoint::read_moments(const std::string& parameter, int64_t first_element,
                              std::span<float> first_moment, std::span<float> second_moment) const {
  CHECK(first_moment.size() == second_moment.size(), first_moment.size(), " first and ",
        second_moment.size(), " second moments");
  const int64_t end = first_element + static_cast<int64_t>(first_moment.size());
  int64_t next = first_element;
  for (const ShardRecord& shard : manifest_.shards) {  // in order and without holes
    const int64_t shard_end = shard.first_element + shard.count;
    if (shard.parameter != parameter || shard_end <= next || shard.first_element >= end) continue;
    const auto path = folder_ / shard.file;
    const SafetensorsFile file(path);
    const int64_t offset = next - shard.first_element;
    const auto begin = static_cast<size_t>(next - first_element);
    const auto count = static_cast<size_t>(std::min(end, shard_end) - next);
    read_part(path, file, "first/" + parameter, shard.count, offset,
              first_moment.subspan(begin, count));
    read_part(path, file, "second/" + parameter, shard.count, offset,
              second_moment.subspan(begin, count));
    next += static_cast<int64_t>(count);
  }
  CHECK(first_element >= 0 && next == end, "moments ", first_element, " to ", end, " of ",
        parameter, ", of which the checkpoint has them up to ", next);
}

std::optional<Checkpoint> newest_whole_checkpoint(const std::filesystem::path& checkpoints,
                                                  std::vector<Skipped>& skipped, CheckpointPart part) {
  // To a reader of weights they may be of a run that is saving now.
  if (part == CheckpointPart::everything) {
    for (const auto& path : leftovers(checkpoints)) {
      skipped.push_back({path, "a save or a deletion that was cut off"});
    }
  }
  for (const StepFolder& folder : step_folders(checkpoints)) {
    try {
      return open_and_verify(folder, part);
    } catch (const Error& error) {
      skipped.push_back({folder.path, error.what()});
    }
  }
  return std::nullopt;
}

bool has_checkpoints(const std::filesystem::path& checkpoints) {
  return !step_folders(checkpoints).empty();
}

void check_fits(const CheckpointInfo& info, std::span<const ParameterShape> parameters) {
  const char* advice =
      "resume with the config.toml of its run, or start a new run under another name";
  std::map<std::string, std::vector<int64_t>> saved;
  for (const ParameterShape& parameter : info.parameters) saved[parameter.name] = parameter.shape;
  for (const ParameterShape& parameter : parameters) {
    const auto found = saved.extract(parameter.name);
    if (!found || found.mapped() != parameter.shape) {
      throw Error(
          fmt::format("{} is {} in the config's model, {} in the checkpoint", parameter.name,
                      shape_text(parameter.shape), found ? shape_text(found.mapped()) : "absent"),
          advice);
    }
  }
  if (saved.empty()) return;
  throw Error(fmt::format("{} is absent in the config's model, {} in the checkpoint",
                          saved.begin()->first, shape_text(saved.begin()->second)),
              advice);
}

}  // namespace ringlet
