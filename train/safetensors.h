#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "train/files.h"
#include "train/saved_values.h"

namespace ringlet {

/// The safetensors format, f32 only:
///
///   bytes 0..7      length of the header, little-endian
///   header          JSON, padded with spaces to 8 bytes:
///                   {"NAME": {"dtype": "F32", "shape": [..], "data_offsets": [begin, end]}, ..,
///                    "__metadata__": {"KEY": "VALUE", ..}}
///   data            the tensors without gaps; offsets count from here
///
/// Source: https://github.com/huggingface/safetensors (README, "Format").
struct NamedValues {
  std::string name;
  std::vector<int64_t> shape;
  SavedValues values;
};

using Metadata = std::map<std::string, std::string>;

/// Number of elements of a shape; nothing when a size is negative or the product is beyond 2^60.
std::optional<int64_t> element_count(std::span<const int64_t> shape);

/// Writes a new file to the disk, straight from the given values: no copy of more than a block. Throws Error when
/// the path exists, cannot be written, a name comes twice or a shape is not that of its values.
Written write_safetensors(const std::filesystem::path& path, std::span<const NamedValues> tensors,
                          const Metadata& metadata, const EachBlock& each_block = {});

/// A file opened for reading. Its header is believed only after every size and offset was checked;
/// a file that is damaged or holds anything but f32 is an Error. Keeps no file open.
class SafetensorsFile {
 public:
  struct Entry {
    std::vector<int64_t> shape;
    int64_t first_byte = 0, elements = 0;
  };

  explicit SafetensorsFile(std::filesystem::path path);

  const std::map<std::string, Entry>& tensors() const { return tensors_; }
  const Metadata& metadata() const { return metadata_; }
  /// Elements [first_element, first_element + values.size()) of a tensor. Throws Error when they
  /// are not there.
  void read(const std::string& name, int64_t first_element, std::span<float> values) const;

 private:
  std::filesystem::path path_;
  std::map<std::string, Entry> tensors_;
  Metadata metadata_;
};

}  // namespace ringlet
