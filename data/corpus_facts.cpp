#include "data/corpus_facts.h"

#include <fmt/core.h>

#include <algorithm>
#include <bit>
#include <limits>
#include <optional>
#include <vector>

#include "data/hdf5_child.h"
#include "data/hdf5_handle.h"
#include "kernels/check.h"

namespace ringlet {

namespace {

static_assert(std::endian::native == std::endian::little,
              "values are read as they lie on the disk");

constexpr hsize_t kMaxChunkBytes = 16 << 20;
constexpr int64_t kMaxDeflateRatio = 1100;  // deflate makes at most 1032 bytes of one

/// Reads the facts of one open file; made for one use.
class FactReader {
 public:
  FactReader(const File& file, const File& unpacked)
      : path_(file.path()),
        unpacked_(unpacked),
        id_(H5Fopen(fmt::format("/proc/self/fd/{}", file.descriptor()).c_str(), H5F_ACC_RDONLY,
                    H5P_DEFAULT),
            H5Fclose, "read", path_) {
    file_bytes_ = file.size_bytes();
  }
  CorpusFacts read();

 private:
  struct Wanted {
    const char* name;
    size_t unpacked_bytes;  // as what a foreign dataset is unpacked; 0: never unpacked
    int64_t limit;          // values must be below it
    H5T_class_t type_class = H5T_INTEGER;
  };
  [[noreturn]] void refuse(const std::string& reason) const;
  std::optional<int64_t> integer(const char* name) const;
  std::string text(const char* name) const;
  bool has_hard_link(const char* name) const;
  DatasetFacts dataset(const Wanted& wanted);
  Hdf5Handle open_list(const Wanted& wanted, DatasetFacts& facts) const;
  bool plain_on_disk(hid_t dataset, const Wanted& wanted) const;
  void check_storage(hid_t dataset, const std::string& name, int64_t bytes) const;
  void check_filters(hid_t creation, const std::string& name) const;
  void unpack(hid_t dataset, const Wanted& wanted, DatasetFacts& facts);
  void read_attributes();

  std::string path_;
  const File& unpacked_;
  Hdf5Handle id_;
  int64_t file_bytes_ = 0;
  int64_t unpacked_end_ = 0;
  CorpusFacts facts_;
};

void FactReader::refuse(const std::string& reason) const {
  throw Error(fmt::format("{}: {}", path_, reason),
              "Make the corpus again: ringlet prepare INPUT -o CORPUS.h5");
}

std::optional<int64_t> FactReader::integer(const char* name) const {
  if (H5Aexists(id_, name) <= 0) return {};
  const Hdf5Handle attribute(H5Aopen(id_, name, H5P_DEFAULT), H5Aclose, "read", path_);
  const Hdf5Handle type(H5Aget_type(attribute), H5Tclose, "read", path_);
  const Hdf5Handle space(H5Aget_space(attribute), H5Sclose, "read", path_);
  if (H5Tget_class(type) != H5T_INTEGER || H5Tget_size(type) > 8 ||
      H5Sget_simple_extent_npoints(space) != 1) {
    refuse(fmt::format("attribute {} is not one whole number", name));
  }
  int64_t value = 0;
  check_hdf5(H5Aread(attribute, H5T_NATIVE_INT64, &value), "read", path_);
  return value;
}

// a text of variable length is for other programs: it is left alone, not an error
std::string FactReader::text(const char* name) const {
  if (H5Aexists(id_, name) <= 0) return {};
  const Hdf5Handle attribute(H5Aopen(id_, name, H5P_DEFAULT), H5Aclose, "read", path_);
  const Hdf5Handle type(H5Aget_type(attribute), H5Tclose, "read", path_);
  const Hdf5Handle space(H5Aget_space(attribute), H5Sclose, "read", path_);
  const size_t bytes = H5Tget_size(type);
  if (H5Tget_class(type) != H5T_STRING || H5Tis_variable_str(type) > 0 || bytes == 0 ||
      bytes >= size_t(kMaxNameBytes) || H5Sget_simple_extent_npoints(space) != 1) {
    return {};
  }
  std::string value(bytes, '\0');
  check_hdf5(H5Aread(attribute, type, value.data()), "read", path_);
  return value.substr(0, value.find('\0'));
}

bool FactReader::has_hard_link(const char* name) const {
  if (H5Lexists(id_, name, H5P_DEFAULT) <= 0) return false;
  H5L_info_t link{};
  check_hdf5(H5Lget_info(id_, name, &link, H5P_DEFAULT), "read", path_);
  if (link.type != H5L_TYPE_HARD) {
    refuse(fmt::format("/{} is a link to somewhere else, which is not followed", name));
  }
  return true;
}

void FactReader::check_filters(hid_t creation, const std::string& name) const {
  for (int i = 0; i < H5Pget_nfilters(creation); ++i) {
    unsigned flags = 0;
    size_t value_count = 0;
    const H5Z_filter_t filter =
        H5Pget_filter2(creation, unsigned(i), &flags, &value_count, nullptr, 0, nullptr, nullptr);
    if (filter != H5Z_FILTER_DEFLATE && filter != H5Z_FILTER_SHUFFLE &&
        filter != H5Z_FILTER_FLETCHER32) {
      refuse(fmt::format("{} is stored with filter {}; deflate, shuffle and fletcher32 are known",
                         name, filter));
    }
  }
}

void FactReader::check_storage(hid_t dataset, const std::string& name, int64_t bytes) const {
  const Hdf5Handle creation(H5Dget_create_plist(dataset), H5Pclose, "read", path_);
  if (H5Pget_external_count(creation) != 0) {
    refuse(fmt::format("{} is stored in another file, which is not read", name));
  }
  const H5D_layout_t layout = H5Pget_layout(creation);
  if (layout == H5D_VIRTUAL)
    refuse(fmt::format("{} is a virtual dataset, which is not read", name));
  check_filters(creation, name);
  if (layout == H5D_CHUNKED) {
    hsize_t chunk = 0;
    if (H5Pget_chunk(creation, 1, &chunk) != 1 || chunk == 0 || chunk > kMaxChunkBytes / 8) {
      refuse(fmt::format("{} is stored in chunks of more than 2 Mi values", name));
    }
  }
  const auto stored = static_cast<int64_t>(H5Dget_storage_size(dataset));
  if (stored > file_bytes_ || bytes / kMaxDeflateRatio > stored) {
    refuse(fmt::format("{} claims {} bytes, but only {} are stored", name, bytes, stored));
  }
}

bool FactReader::plain_on_disk(hid_t dataset, const Wanted& wanted) const {
  const Hdf5Handle creation(H5Dget_create_plist(dataset), H5Pclose, "read", path_);
  if (H5Pget_layout(creation) != H5D_CONTIGUOUS) return false;
  if (wanted.unpacked_bytes == 0) return true;
  const Hdf5Handle type(H5Dget_type(dataset), H5Tclose, "read", path_);
  const size_t bytes = H5Tget_size(type);
  const bool fits = wanted.unpacked_bytes == 8 ? bytes == 8 : bytes == 2 || bytes == 4;
  return fits && H5Tget_sign(type) == H5T_SGN_NONE && H5Tget_order(type) == H5T_ORDER_LE &&
         H5Tget_precision(type) == bytes * 8;
}

void FactReader::unpack(hid_t dataset, const Wanted& wanted, DatasetFacts& facts) {
  facts.value_bytes = int64_t(wanted.unpacked_bytes);
  facts.offset_bytes = unpacked_end_;
  facts.unpacked = true;
  unpacked_end_ += facts.count * facts.value_bytes;
  facts_.needs_unpacking = true;
  if (!unpacked_) return;
  const Hdf5Handle space(H5Dget_space(dataset), H5Sclose, "read", path_);
  std::vector<int64_t> values;
  for (int64_t first = 0; first < facts.count; first += kBlockTokens) {
    const hsize_t start = hsize_t(first);
    const hsize_t count = hsize_t(std::min(kBlockTokens, facts.count - first));
    values.resize(count);
    const Hdf5Handle memory(H5Screate_simple(1, &count, nullptr), H5Sclose, "read", path_);
    check_hdf5(H5Sselect_hyperslab(space, H5S_SELECT_SET, &start, nullptr, &count, nullptr), "read",
               path_);
    check_hdf5(H5Dread(dataset, H5T_NATIVE_INT64, memory, space, H5P_DEFAULT, values.data()),
               "read", path_);
    for (size_t i = 0; i < values.size(); ++i) {
      if (values[i] < 0 || values[i] >= wanted.limit) {
        refuse(fmt::format("/{} holds {} at place {}", wanted.name, values[i], first + int64_t(i)));
      }
    }
    const int64_t at = facts.offset_bytes + first * facts.value_bytes;
    if (facts.value_bytes == 8) {
      unpacked_.write(at, std::as_bytes(std::span(values)));
    } else {
      const std::vector<uint32_t> narrow(values.begin(), values.end());
      unpacked_.write(at, std::as_bytes(std::span(narrow)));
    }
  }
}

/// A list of the wanted class, whatever its size; fills count and value_bytes.
Hdf5Handle FactReader::open_list(const Wanted& wanted, DatasetFacts& facts) const {
  const std::string name = fmt::format("/{}", wanted.name);
  H5O_info_t object{};
  check_hdf5(H5Oget_info_by_name(id_, wanted.name, &object, H5P_DEFAULT), "read", path_);
  if (object.type != H5O_TYPE_DATASET) refuse(fmt::format("{} is not a dataset", name));
  Hdf5Handle dataset(H5Dopen2(id_, wanted.name, H5P_DEFAULT), H5Dclose, "read", path_);
  const Hdf5Handle type(H5Dget_type(dataset), H5Tclose, "read", path_);
  const Hdf5Handle space(H5Dget_space(dataset), H5Sclose, "read", path_);
  if (H5Sget_simple_extent_ndims(space) != 1) refuse(fmt::format("{} is not a list", name));
  const size_t value_bytes = H5Tget_size(type);
  const bool texts = wanted.type_class == H5T_STRING;
  const bool fits = texts ? H5Tis_variable_str(type) == 0 && value_bytes <= size_t(kMaxNameBytes)
                          : value_bytes <= 8;
  if (H5Tget_class(type) != wanted.type_class || !fits || value_bytes == 0) {
    refuse(fmt::format("{} is not a list of {}", name, texts ? "short texts" : "whole numbers"));
  }
  hsize_t count = 0;
  H5Sget_simple_extent_dims(space, &count, nullptr);
  if (count > hsize_t(std::numeric_limits<int64_t>::max() / kMaxNameBytes)) {
    refuse(fmt::format("{} claims {} values", name, count));
  }
  facts.count = int64_t(count);
  facts.value_bytes = int64_t(value_bytes);
  return dataset;
}

DatasetFacts FactReader::dataset(const Wanted& wanted) {
  DatasetFacts facts;
  if (!has_hard_link(wanted.name)) return facts;
  const std::string name = fmt::format("/{}", wanted.name);
  const Hdf5Handle dataset = open_list(wanted, facts);
  check_storage(dataset, name, facts.count * facts.value_bytes);
  if (!plain_on_disk(dataset, wanted)) {
    if (facts_.own_format || wanted.unpacked_bytes == 0) {
      refuse(fmt::format("{} is not stored as plain numbers", name));
    }
    unpack(dataset, wanted, facts);
    return facts;
  }
  const haddr_t offset = H5Dget_offset(dataset);
  const bool absent = offset == HADDR_UNDEF || offset > haddr_t(file_bytes_);
  if (facts.count > 0 && absent) refuse(fmt::format("{} has no data in the file", name));
  facts.offset_bytes = facts.count > 0 ? int64_t(offset) : 0;
  return facts;
}

void FactReader::read_attributes() {
  facts_.own_format = text("format") == kCorpusFormat;
  if (facts_.own_format) {
    const int64_t version = integer("version").value_or(-1);
    if (version != kCorpusVersion) {
      refuse(fmt::format("format version {}, this program reads {}", version, kCorpusVersion));
    }
    if (integer("complete").value_or(0) != 1) refuse("writing it was not completed");
  }
  facts_.token_count = integer("token_count").value_or(-1);
  facts_.document_count = integer("document_count").value_or(-1);
  facts_.vocabulary = integer("vocabulary").value_or(-1);
  facts_.end_of_document = integer("end_of_document").value_or(-1);
  facts_.block_tokens = integer("block_tokens").value_or(-1);
  facts_.answer_count = integer("answer_count").value_or(-1);
  facts_.tokenizer_name.set(text("tokenizer_name"));
  facts_.tokenizer_hash.set(text("tokenizer_hash"));
  facts_.split.set(text("split"));
  facts_.content_hash.set(text("content_hash"));
}

CorpusFacts FactReader::read() {
  constexpr int64_t kAnyLimit = std::numeric_limits<int64_t>::max();
  read_attributes();
  facts_.tokens = dataset({"tokens", 4, std::numeric_limits<int32_t>::max()});
  if (facts_.tokens.count < 0) refuse("it has no dataset /tokens");
  facts_.document_offsets = dataset({"document_offsets", 8, kAnyLimit});
  facts_.answers = dataset({"answers", 8, kAnyLimit});
  facts_.answer_distances = dataset({"answer_distances", 8, kAnyLimit});
  if (!facts_.own_format) return facts_;
  facts_.block_checksums = dataset({"block_checksums", 8, kAnyLimit});
  facts_.document_names = dataset({"document_names", 0, 0, H5T_STRING});
  facts_.tokenizer_model = dataset({"tokenizer_model", 0, 0});
  return facts_;
}

}  // namespace

CorpusFacts probe_corpus(const File& file, const File& unpacked) {
  const Error crashed(
      fmt::format("{} is damaged: reading its structure crashed or did not end", file.path()),
      "Make the corpus again from its text.");
  // decompressing makes some 20 MB/s in the worst case
  const int64_t cpu_seconds = 2 + (unpacked ? file.size_bytes() / 1'000'000 : 0);
  return run_hdf5_child(cpu_seconds, crashed, [&] {
    quieten_hdf5();
    return FactReader(file, unpacked).read();
  });
}

}  // namespace ringlet
