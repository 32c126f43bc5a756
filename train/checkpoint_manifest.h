#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "model/gpt_config.h"

namespace ringlet {

/// The file of the weights. The manifest's own is manifest.json.
inline constexpr const char* kModelFile = "model.safetensors";

/// What a checkpoint says beside its numbers.
struct CheckpointInfo {
  int64_t step = 0, tokens = 0;
  uint64_t seed = 0;
  int64_t cursor = 0;  // of the loader: with the seed, all that the order of samples depends on
  std::map<std::string, int64_t> counters;
  std::string config_toml;  // resolved
  std::string corpus_fingerprint, tokenizer_name, tokenizer_hash;
  int world = 1, ring = 1;
  std::string layout;
  std::vector<ParameterShape> parameters;
};

struct FileRecord {
  std::string name;  // inside the checkpoint's folder
  int64_t bytes = 0;
  uint64_t checksum = 0;
};

/// Consecutive elements of one parameter's moments and the file that has them.
struct ShardRecord {
  std::string file, parameter;
  int64_t first_element = 0, count = 0;
};

/// Everything in manifest.json. In a manifest that was parsed, files have plain names, every
/// shard's file and parameter are listed, and the shards of a parameter cover its elements once, in
/// order.
struct Manifest {
  CheckpointInfo info;
  std::vector<FileRecord> files;
  std::vector<ShardRecord> shards;
};

/// JSON that ends in a newline. Its checksum is a value beside the body, so that every byte is
/// either summed or fixed. Throws Error when the manifest breaks the rules above (elements that no
/// rank owns, or two).
std::string manifest_text(Manifest manifest);

/// Throws Error that names `path`: another format or version, damaged, or rules broken.
Manifest parse_manifest(std::string_view text, const std::filesystem::path& path);

/// What one rank has written: its file, and the shards in it.
struct Part {
  FileRecord file;
  std::vector<ShardRecord> shards;
};
std::string part_text(const Part& part);
Part parse_part(const std::string& text);

}  // namespace ringlet
