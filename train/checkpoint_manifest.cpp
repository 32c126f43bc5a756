#include "train/checkpoint_manifest.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <tuple>

#include "kernels/check.h"
#include "train/safetensors.h"

namespace ringlet {

// Found by the JSON library through their names; the types are never converted otherwise.
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(ParameterShape, name, shape)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(FileRecord, name, bytes, checksum)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(ShardRecord, file, parameter, first_element, count)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(Part, file, shards)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(CheckpointInfo, step, tokens, seed, cursor, counters,
                                   config_toml, corpus_fingerprint, tokenizer_name, tokenizer_hash,
                                   world, ring, layout, parameters)

namespace {

using Json = nlohmann::json;

constexpr const char* kFormat = "ringlet checkpoint";
constexpr int kVersion = 1;

// The text is kOpening, 16 hexadecimal digits, kMiddle, body, kClosing.
constexpr std::string_view kOpening = "{\"checksum\": \"";
constexpr std::string_view kMiddle = "\", \"manifest\":\n";
constexpr std::string_view kClosing = "\n}\n";
constexpr size_t kBodyBegin = kOpening.size() + 16 + kMiddle.size();

bool is_plain_name(const std::string& name) {
  return !name.empty() && name != "." && name != ".." && name.find('/') == std::string::npos &&
         name.find('\0') == std::string::npos;
}

void check_names(const Manifest& manifest) {
  std::set<std::string> files;
  for (const FileRecord& file : manifest.files) {
    if (!is_plain_name(file.name) || file.bytes < 0 || !files.insert(file.name).second) {
      throw Error(fmt::format("file {} cannot be part of a checkpoint", file.name));
    }
  }
  for (const ShardRecord& shard : manifest.shards) {
    if (!files.contains(shard.file)) throw Error(fmt::format("file {} is not listed", shard.file));
  }
}

/// Sorts the shards and sees that they cover every element of every parameter once.
void check_coverage(Manifest& manifest) {
  const auto key = [](const ShardRecord& s) {
    return std::tie(s.parameter, s.first_element, s.count);
  };
  std::sort(manifest.shards.begin(), manifest.shards.end(),
            [&](const ShardRecord& a, const ShardRecord& b) { return key(a) < key(b); });
  std::map<std::string, int64_t> covered;
  for (const ParameterShape& parameter : manifest.info.parameters) covered[parameter.name] = 0;
  for (const ShardRecord& shard : manifest.shards) {
    const auto next = covered.find(shard.parameter);
    if (next == covered.end() || shard.count < 0 || shard.first_element != next->second ||
        __builtin_add_overflow(next->second, shard.count, &next->second)) {
      throw Error(fmt::format("elements of {} from {} on: owned twice, by nobody, or unknown",
                              shard.parameter, shard.first_element));
    }
  }
  for (const ParameterShape& parameter : manifest.info.parameters) {
    if (element_count(parameter.shape) != covered[parameter.name]) {
      throw Error(fmt::format("moments of {}: {} elements are there", parameter.name,
                              covered[parameter.name]));
    }
  }
}

/// The body, if the text is framed as it should be and the checksum is right.
std::optional<std::string_view> checked_body(std::string_view text) {
  if (text.size() < kBodyBegin + kClosing.size() || !text.ends_with(kClosing)) return std::nullopt;
  const std::string_view body = text.substr(kBodyBegin, text.size() - kBodyBegin - kClosing.size());
  const std::string frame = fmt::format("{}{:016x}{}", kOpening, checksum_of(body), kMiddle);
  if (!text.starts_with(frame)) return std::nullopt;
  return body;
}

}  // namespace

std::string manifest_text(Manifest manifest) {
  check_names(manifest);
  check_coverage(manifest);
  const Json value = {{"format", kFormat},
                      {"version", kVersion},
                      {"info", manifest.info},
                      {"files", manifest.files},
                      {"shards", manifest.shards}};
  std::string body;
  try {
    body = value.dump(1);
  } catch (const Json::exception&) {
    throw Error("a name or the config is not UTF-8", "use UTF-8 in names and config");
  }
  return fmt::format("{}{:016x}{}{}{}", kOpening, checksum_of(body), kMiddle, body, kClosing);
}

Manifest parse_manifest(std::string_view text, const std::filesystem::path& path) {
  const char* advice = "use another checkpoint, or restore this one from a copy";
  if (!text.starts_with(kOpening)) {
    throw Error(fmt::format("{} is not the manifest of a Ringlet checkpoint", path.string()),
                advice);
  }
  const auto body = checked_body(text);
  if (!body) throw Error(fmt::format("{} is damaged: wrong checksum", path.string()), advice);
  Manifest manifest;
  int version = 0;
  try {
    const Json value = Json::parse(*body);
    if (value.at("format") != kFormat) throw Error("it is of another format");
    version = value.at("version").get<int>();
    if (version == kVersion) {
      manifest.info = value.at("info").get<CheckpointInfo>();
      manifest.files = value.at("files").get<std::vector<FileRecord>>();
      manifest.shards = value.at("shards").get<std::vector<ShardRecord>>();
      check_names(manifest);
      check_coverage(manifest);
    }
  } catch (const std::exception& error) {
    throw Error(fmt::format("{} does not make sense: {}", path.string(), error.what()), advice);
  }
  if (version != kVersion) {
    throw Error(fmt::format("{} is of version {}; this ringlet reads version {}", path.string(),
                            version, kVersion),
                "use the ringlet that wrote it, or another checkpoint");
  }
  return manifest;
}

std::string part_text(const Part& part) { return Json(part).dump(); }

Part parse_part(const std::string& text) { return Json::parse(text).get<Part>(); }

}  // namespace ringlet
