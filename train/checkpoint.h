#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "kernels/comm.h"
#include "kernels/trace.h"
#include "train/checkpoint_manifest.h"
#include "train/saved_values.h"

namespace ringlet {

/// A checkpoint is a folder, checkpoints/step_00000100:
///
///   model.safetensors    all weights, f32, by parameter name
///   moments-RRRRR-of-WWWWW.safetensors
///                        what rank R of W owned of both moments: "first/NAME" and "second/NAME",
///                        flat; __metadata__ has the first element of each NAME
///   manifest.json        everything in CheckpointInfo, which elements are in which file, sizes
///                        and XXH3-64 checksums of all files, its own checksum
///
/// It is whole when the manifest is there and all checksums are right. It can be loaded on any
/// number of ranks.

struct NamedWeights {
  std::string name;
  SavedValues values;
};

/// Consecutive elements of one parameter's moments, on the rank that owns them.
struct Shard {
  std::string parameter;
  int64_t first_element = 0;
  SavedValues first_moment, second_moment;
};

struct SavePolicy {
  int keep_last = 2;  // 0: all
};

/// Who saves: one rank of the world, and where each block that it has written is a sign of life, for the
/// ranks that wait.
struct SavingRank {
  Comm& world;
  Trace& trace;
};

/// Writes checkpoints/step_N, N = info.step. Collective; everything is on the disk on return, on
/// every rank.
///   info     equal on all ranks; world is the size of rank.world
///   weights  rank 0: all parameters in the order of info.parameters; other ranks: not read
///   shards   of this rank, at most one per parameter; all ranks together own every element once
/// On success, checkpoints of older steps go, until `keep_last` whole ones are left (this one
/// included), and so do the leftovers of saves that were killed. An existing checkpoint of the same
/// step stays until this one is whole. Throws Error on every rank when any rank fails (PeerFailed
/// on those that did not); then the folder holds the checkpoints that it held before. Values that
/// are not finite are a failure. Requires: nobody else writes in `checkpoints` (RunFolder's lock).
void save_checkpoint(const std::filesystem::path& checkpoints, const CheckpointInfo& info,
                     std::span<const NamedWeights> weights, std::span<const Shard> shards,
                     const SavePolicy& policy, const SavingRank& rank);

/// Deletes checkpoints of steps before `newest_step`, until `keep_last` (0: all) that open are left, with the one of
/// that step. What cannot be deleted stays.
void remove_old_checkpoints(const std::filesystem::path& checkpoints, int64_t newest_step, int keep_last);

/// What a reader needs: to evaluate and to generate, the weights.
enum class CheckpointPart : uint8_t { weights, everything };

/// A checkpoint opened for reading: a value, which keeps no file open. Threads may share one.
class Checkpoint {
 public:
  /// Reads and checks the manifest, and the sizes of the files of that part. Throws Error: foreign,
  /// damaged, half-written.
  static Checkpoint open(const std::filesystem::path& folder, CheckpointPart part = CheckpointPart::everything);

  /// Reads that part and compares the checksums. Throws Error that names the first damaged file.
  /// One rank is enough.
  void verify(CheckpointPart part = CheckpointPart::everything) const;

  const std::filesystem::path& folder() const { return folder_; }
  const CheckpointInfo& info() const { return manifest_.info; }

  /// All elements of a parameter. Throws Error, also where the checkpoint is gone by now.
  void read_weights(const std::string& parameter, std::span<float> values) const;
  /// Any range of both moments, however they were shared out when saved. The spans have equal
  /// sizes.
  void read_moments(const std::string& parameter, int64_t first_element,
                    std::span<float> first_moment, std::span<float> second_moment) const;

 private:
  Checkpoint(std::filesystem::path folder, Manifest manifest);
  std::filesystem::path folder_;
  Manifest manifest_;
};

struct Skipped {
  std::filesystem::path path;
  std::string reason;
};

/// The checkpoint of the highest step of which that part is whole, verified. `skipped` gets what was passed over on the
/// way, and why; with everything, what was cut off too. Nothing, with something skipped, means that progress would be
/// lost: not a reason to start afresh silently.
std::optional<Checkpoint> newest_whole_checkpoint(const std::filesystem::path& checkpoints,
                                                  std::vector<Skipped>& skipped,
                                                  CheckpointPart part = CheckpointPart::everything);

/// Is there any checkpoint, whole or not?
bool has_checkpoints(const std::filesystem::path& checkpoints);

/// Throws Error that names the first parameter whose presence or shape is not that of the config's
/// model.
void check_fits(const CheckpointInfo& info, std::span<const ParameterShape> parameters);

}  // namespace ringlet
