#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>

#include <algorithm>
#include <cmath>
#include <exception>
#include <functional>
#include <optional>
#include <system_error>

#include "kernels/check.h"
#include "train/checkpoint.h"
#include "train/checkpoint_folder.h"
#include "train/files.h"
#include "train/safetensors.h"

namespace ringlet {
namespace {

namespace fs = std::filesystem;

std::string moments_name(int rank, int world) {
  return fmt::format("moments-{:05}-of-{:05}.safetensors", rank, world);
}

/// A rank's word to rank 0 that its part is on the disk. It goes through the file system because a
/// Comm may know only the memory of a device.
std::string part_name(int rank) { return fmt::format("part-{:05}.json", rank); }

void check_finite(const NamedValues& tensor) {
  tensor.values.visit([&](std::span<const float> block) {
    if (std::ranges::all_of(block, [](float value) { return std::isfinite(value); })) return;
    throw Error(fmt::format("{} holds a value that is not finite: not saved", tensor.name),
                "resume from the last checkpoint with a lower learning rate");
  });
}

Written write_and_read_back(const fs::path& path, std::span<const NamedValues> tensors,
                            const Metadata& metadata, const EachBlock& each_block) {
  std::ranges::for_each(tensors, check_finite);
  const Written written = write_safetensors(path, tensors, metadata, each_block);
  const Written found = read_back(path, each_block);
  if (found.bytes != written.bytes || found.checksum != written.checksum) {
    throw Error(fmt::format("{} does not read as it was written", path.string()),
                "the disk or memory is failing: use another machine or disk");
  }
  return written;
}

void write_text(const fs::path& path, std::string_view text) {
  OutputFile file(path);
  file.write(text);
  file.finish();
}

bool opens(const fs::path& folder) {
  try {
    Checkpoint::open(folder);
    return true;
  } catch (const Error&) {
    return false;
  }
}

/// One save as one rank sees it. Every rank passes the same three barriers whatever fails in
/// between; the first error of a rank is kept until then.
class Save {
 public:
  Save(const fs::path& checkpoints, const CheckpointInfo& info, const SavingRank& rank)
      : checkpoints_(checkpoints),
        final_(checkpoints / step_name(info.step)),
        temporary_(temporary_folder(checkpoints, info.step)),
        info_(info),
        world_(rank.world),
        moves_([&trace = rank.trace] { trace.sign_of_life(); }) {}
  Save(const Save&) = delete;
  Save& operator=(const Save&) = delete;
  ~Save() { remove_temporary(); }

  void run(std::span<const NamedWeights> weights, std::span<const Shard> shards,
           const SavePolicy& policy);

 private:
  void attempt(const std::function<void()>& work);
  [[noreturn]] void fail_after_peer(std::string_view peer) const;
  void prepare();
  void write_part(std::span<const Shard> shards);
  void write_weights(std::span<const NamedWeights> weights);
  void commit();
  void put_in_place() const;
  void remove_superseded(int keep_last) const;
  void undo();
  void remove_temporary();
  bool is_in_place() const;

  const fs::path checkpoints_, final_, temporary_;
  const CheckpointInfo& info_;
  Comm& world_;
  const EachBlock moves_;
  FileRecord model_;
  std::optional<Descriptor> folder_;  // the temporary folder, which keeps its inode when renamed
  std::exception_ptr error_;
};

void Save::attempt(const std::function<void()>& work) {
  if (error_) return;
  try {
    work();
  } catch (...) {
    error_ = std::current_exception();
  }
}

void Save::fail_after_peer(std::string_view peer) const {
  throw PeerFailed(fmt::format("step {} was not saved: {} failed", info_.step, peer),
                   "see the message of the rank that failed");
}

void Save::run(std::span<const NamedWeights> weights, std::span<const Shard> shards,
               const SavePolicy& policy) {
  const bool leads = world_.rank() == 0;
  if (leads) attempt([&] { prepare(); });
  world_.barrier();  // the temporary folder is there
  attempt([&] { write_part(shards); });
  if (leads) attempt([&] { write_weights(weights); });
  world_.barrier();  // every rank has written what it could
  if (leads) attempt([&] { commit(); });
  if (leads && error_) undo();
  world_.barrier();  // in place, or gone
  if (error_) std::rethrow_exception(error_);
  if (!leads && !is_in_place()) fail_after_peer("another rank");
  if (leads) remove_superseded(policy.keep_last);
}

void Save::prepare() {
  CHECK(info_.world == world_.size(), "world of ", info_.world, " on ", world_.size(), " ranks");
  create_folders(checkpoints_);
  for (const fs::path& path : leftovers(checkpoints_)) discard(path);
  int64_t elements = 0;
  for (const ParameterShape& parameter : info_.parameters) {
    elements += element_count(parameter.shape).value_or(0);
  }
  const int64_t bytes = 3 * 4 * elements;  // weights and two moments
  // Headers, the manifest, and what file systems add, come on top.
  check_free_space(checkpoints_, bytes + bytes / 20 + (int64_t{1} << 18),
                   fmt::format("saving step {}", info_.step));
  create_folders(temporary_);
}

void Save::write_part(std::span<const Shard> shards) {
  std::error_code unknown;
  if (!fs::exists(temporary_, unknown)) fail_after_peer("rank 0");
  folder_.emplace(temporary_, O_RDONLY | O_DIRECTORY);
  Part part;
  part.file.name = moments_name(world_.rank(), world_.size());
  std::vector<NamedValues> tensors;
  Metadata metadata;
  for (const Shard& shard : shards) {
    const int64_t count = shard.first_moment.size();
    CHECK(shard.first_moment.size() == shard.second_moment.size(), "moments of ", shard.parameter);
    tensors.push_back({"first/" + shard.parameter, {count}, shard.first_moment});
    tensors.push_back({"second/" + shard.parameter, {count}, shard.second_moment});
    metadata[shard.parameter] = std::to_string(shard.first_element);
    part.shards.push_back({part.file.name, shard.parameter, shard.first_element, count});
  }
  const Written written = write_and_read_back(temporary_ / part.file.name, tensors, metadata, moves_);
  part.file.bytes = written.bytes;
  part.file.checksum = written.checksum;
  write_text(temporary_ / part_name(world_.rank()), part_text(part));
}

void Save::write_weights(std::span<const NamedWeights> weights) {
  CHECK(weights.size() == info_.parameters.size(), weights.size(), " weights of ",
        info_.parameters.size(), " parameters");
  std::vector<NamedValues> tensors;
  for (size_t i = 0; i < weights.size(); ++i) {
    const ParameterShape& parameter = info_.parameters[i];
    CHECK(weights[i].name == parameter.name, weights[i].name, " where ", parameter.name,
          " belongs");
    tensors.push_back({parameter.name, parameter.shape, weights[i].values});
  }
  const Written written =
      write_and_read_back(temporary_ / kModelFile, tensors, {{"format", "pt"}}, moves_);
  model_ = {kModelFile, written.bytes, written.checksum};
}

void Save::commit() {
  Manifest manifest{info_, {model_}, {}};
  for (int rank = 0; rank < world_.size(); ++rank) {
    const fs::path path = temporary_ / part_name(rank);
    std::error_code unknown;
    if (!fs::exists(path, unknown)) fail_after_peer(fmt::format("rank {}", rank));
    const Part part = parse_part(read_text(path, int64_t{1} << 30));
    manifest.files.push_back(part.file);
    manifest.shards.insert(manifest.shards.end(), part.shards.begin(), part.shards.end());
    remove_file(path);
  }
  sync_folder(temporary_);  // the manifest may not be durable before the files that it vouches for
  write_text(temporary_ / "manifest.json", manifest_text(std::move(manifest)));
  sync_folder(temporary_);
  Checkpoint::open(temporary_);
  put_in_place();
}

/// At any moment there is a whole checkpoint of this step under one of its names, if there was one
/// before.
void Save::put_in_place() const {
  const fs::path replaced = replaced_folder(checkpoints_, info_.step);
  std::error_code unknown;
  if (fs::exists(final_, unknown)) {
    if (fs::exists(replaced, unknown)) discard(replaced);
    rename_path(final_, replaced);
  }
  rename_path(temporary_, final_);
  sync_folder(checkpoints_);
  sync_folder(checkpoints_.parent_path().empty() ? "." : checkpoints_.parent_path());
}

void Save::remove_superseded(int keep_last) const {
  try {
    const fs::path replaced = replaced_folder(checkpoints_, info_.step);
    if (std::error_code unknown; fs::exists(replaced, unknown)) discard(replaced);
  } catch (const Error&) {  // as there
  }
  remove_old_checkpoints(checkpoints_, info_.step, keep_last);
}

/// A checkpoint that may not be durable does not count as saved on the other ranks either.
void Save::undo() {
  std::error_code ignored;
  if (is_in_place()) fs::rename(final_, temporary_, ignored);
  remove_temporary();
}

void Save::remove_temporary() {
  std::error_code ignored;  // what cannot go now is a leftover for the next save
  if (world_.rank() == 0) fs::remove_all(temporary_, ignored);
}

bool Save::is_in_place() const {
  struct stat written, found;
  if (!folder_ || ::fstat(folder_->get(), &written) != 0) return false;
  return ::stat(final_.c_str(), &found) == 0 && written.st_dev == found.st_dev &&
         written.st_ino == found.st_ino;
}

}  // namespace

void remove_old_checkpoints(const fs::path& checkpoints, int64_t newest_step, int keep_last) {
  int kept = 1;
  try {
    for (const StepFolder& folder : step_folders(checkpoints)) {
      if (keep_last == 0 || folder.step >= newest_step) continue;
      if (kept >= keep_last)
        discard(folder.path);
      else if (opens(folder.path))
        ++kept;
    }
  } catch (const Error&) {  // the newest is safe; the next save tries again
  }
}

void save_checkpoint(const fs::path& checkpoints, const CheckpointInfo& info,
                     std::span<const NamedWeights> weights, std::span<const Shard> shards,
                     const SavePolicy& policy, const SavingRank& rank) {
  Save(checkpoints, info, rank).run(weights, shards, policy);
}

}  // namespace ringlet
