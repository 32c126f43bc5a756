#include "train/safetensors.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <nlohmann/json.hpp>
#include <set>

#include "kernels/check.h"

namespace ringlet {
namespace {

using Json = nlohmann::json;

static_assert(std::endian::native == std::endian::little, "the format is little-endian");

constexpr int64_t kMaxHeaderBytes = 100'000'000;  // the limit of the format's own library
constexpr int kMaxNesting = 4;                    // header, tensor, shape: more is an attack
constexpr const char* kMetadataKey = "__metadata__";

[[noreturn]] void fail_damaged(const std::filesystem::path& path, const std::string& reason) {
  throw Error(
      fmt::format("{} is damaged or not a safetensors file of f32: {}", path.string(), reason),
      "use another checkpoint, or restore the file from a copy");
}

void read_at(const Descriptor& file, std::span<std::byte> bytes, int64_t offset,
             const std::filesystem::path& path) {
  while (!bytes.empty()) {
    const ssize_t count = ::pread(file.get(), bytes.data(), bytes.size(), offset);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) fail_on_file("read", path, errno);
    if (count == 0) fail_damaged(path, "it ends too early");
    bytes = bytes.subspan(static_cast<size_t>(count));
    offset += count;
  }
}

std::string header_text(std::span<const NamedValues> tensors, const Metadata& metadata) {
  Json header = Json::object();
  if (!metadata.empty()) header[kMetadataKey] = metadata;
  int64_t offset = 0;
  for (const NamedValues& tensor : tensors) {
    const int64_t size = tensor.values.size();
    CHECK(element_count(tensor.shape) == size, "shape of ", tensor.name, " is not that of its ",
          size, " values");
    CHECK(!header.contains(tensor.name), "tensor name ", tensor.name, " comes twice");
    header[tensor.name] = {
        {"dtype", "F32"}, {"shape", tensor.shape}, {"data_offsets", {offset, offset + 4 * size}}};
    offset += 4 * size;
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');
  return text;
}

/// Header to JSON; a name that comes twice and deep nesting are refused while they are read.
Json parse_header(const std::string& text, const std::filesystem::path& path) {
  std::set<std::string> names;
  const auto watch = [&](int depth, Json::parse_event_t event, Json& parsed) {
    if (depth > kMaxNesting) fail_damaged(path, "its header is nested too deeply");
    if (depth == 1 && event == Json::parse_event_t::key &&
        !names.insert(parsed.get<std::string>()).second) {
      fail_damaged(path, "a name comes twice in its header");
    }
    return true;
  };
  try {
    Json header = Json::parse(text, watch);
    if (!header.is_object()) fail_damaged(path, "its header is not a JSON object");
    return header;
  } catch (const Json::exception&) {
    fail_damaged(path, "its header is not JSON");
  }
}

SafetensorsFile::Entry parse_entry(const std::string& name, const Json& value, int64_t data_bytes,
                                   const std::filesystem::path& path) {
  try {
    if (value.at("dtype") != "F32") fail_damaged(path, fmt::format("{} is not F32", name));
    SafetensorsFile::Entry entry;
    const Json& offsets = value.at("data_offsets");
    if (!value.at("shape").is_array()) fail_damaged(path, fmt::format("the shape of {}", name));
    for (const Json& size : value.at("shape")) {
      if (!size.is_number_unsigned()) fail_damaged(path, fmt::format("the shape of {}", name));
      entry.shape.push_back(size.get<int64_t>());
    }
    const auto elements = element_count(entry.shape);
    if (offsets.size() != 2 || !offsets.at(0).is_number_unsigned() ||
        !offsets.at(1).is_number_unsigned() || !elements) {
      fail_damaged(path, fmt::format("the shape or offsets of {}", name));
    }
    const auto begin = offsets.at(0).get<uint64_t>(), end = offsets.at(1).get<uint64_t>();
    if (begin > end || end > uint64_t(data_bytes) || end - begin != uint64_t(4 * *elements)) {
      fail_damaged(path, fmt::format("{} lies outside the file or its size is wrong", name));
    }
    entry.first_byte = static_cast<int64_t>(begin);
    entry.elements = *elements;
    return entry;
  } catch (const Json::exception&) {
    fail_damaged(path, fmt::format("the description of {}", name));
  }
}

/// Tensors may neither overlap nor leave gaps, in which things could hide.
void check_no_gaps(const std::map<std::string, SafetensorsFile::Entry>& tensors, int64_t data_bytes,
                   const std::filesystem::path& path) {
  std::vector<std::pair<int64_t, int64_t>> ranges;
  for (const auto& [name, entry] : tensors) {
    ranges.emplace_back(entry.first_byte, entry.first_byte + 4 * entry.elements);
  }
  std::sort(ranges.begin(), ranges.end());
  int64_t next = 0;
  for (const auto& [begin, end] : ranges) {
    if (begin != next) fail_damaged(path, "its tensors overlap or leave gaps");
    next = end;
  }
  if (next != data_bytes) fail_damaged(path, "its size is not that of its tensors");
}

}  // namespace

std::optional<int64_t> element_count(std::span<const int64_t> shape) {
  int64_t count = 1;
  for (const int64_t size : shape) {
    if (size < 0 || __builtin_mul_overflow(count, size, &count) || count > (int64_t{1} << 60)) {
      return std::nullopt;
    }
  }
  return count;
}

Written write_safetensors(const std::filesystem::path& path, std::span<const NamedValues> tensors,
                          const Metadata& metadata, const EachBlock& each_block) {
  const std::string header = header_text(tensors, metadata);
  const uint64_t header_bytes = header.size();
  OutputFile file(path, each_block);
  file.write(std::as_bytes(std::span(&header_bytes, 1)));
  file.write(header);
  for (const NamedValues& tensor : tensors) {
    tensor.values.visit([&](std::span<const float> block) { file.write(std::as_bytes(block)); });
  }
  return file.finish();
}

SafetensorsFile::SafetensorsFile(std::filesystem::path path) : path_(std::move(path)) {
  const Descriptor file(path_, O_RDONLY | O_NONBLOCK);  // a pipe is refused rather than waited for
  struct stat status;
  if (::fstat(file.get(), &status) != 0) fail_on_file("read", path_, errno);
  if (!S_ISREG(status.st_mode)) fail_damaged(path_, "it is not a regular file");
  uint64_t header_bytes = 0;
  read_at(file, std::as_writable_bytes(std::span(&header_bytes, 1)), 0, path_);
  if (header_bytes > uint64_t(kMaxHeaderBytes) || int64_t(header_bytes) > status.st_size - 8) {
    fail_damaged(path_, fmt::format("a header of {} bytes", header_bytes));
  }
  std::string text(header_bytes, '\0');
  read_at(file, std::as_writable_bytes(std::span(text)), 8, path_);
  const int64_t data_begin = 8 + int64_t(header_bytes);
  const Json header = parse_header(text, path_);
  for (const auto& [name, value] : header.items()) {
    if (name == kMetadataKey) {
      try {
        metadata_ = value.get<Metadata>();
      } catch (const Json::exception&) {
        fail_damaged(path_, "its metadata");
      }
    } else {
      tensors_[name] = parse_entry(name, value, status.st_size - data_begin, path_);
    }
  }
  check_no_gaps(tensors_, status.st_size - data_begin, path_);
  for (auto& [name, entry] : tensors_) entry.first_byte += data_begin;
}

void SafetensorsFile::read(const std::string& name, int64_t first_element,
                           std::span<float> values) const {
  const auto found = tensors_.find(name);
  if (found == tensors_.end()) fail_damaged(path_, fmt::format("it has no tensor {}", name));
  const Entry& entry = found->second;
  const int64_t count = static_cast<int64_t>(values.size());
  CHECK(first_element >= 0 && count <= entry.elements && first_element <= entry.elements - count,
        "elements ", first_element, " + ", count, " of ", name, ", which has ", entry.elements);
  const Descriptor file(path_, O_RDONLY);
  read_at(file, std::as_writable_bytes(values), entry.first_byte + 4 * first_element, path_);
}

}  // namespace ringlet
