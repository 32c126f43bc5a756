#include "data/corpus_image.h"

#include <xxhash.h>

#include <algorithm>
#include <mutex>

#include "data/content_hash.h"
#include "data/corpus_facts.h"
#include "data/hdf5_handle.h"

namespace ringlet {

namespace {

/// The HDF5 library lays the file out; its bulk is written past the library, at the places it gave.
class ImageWriter {
 public:
  ImageWriter(const CorpusSpool& spool, const CorpusPart& part, const std::string& path)
      : spool_(spool),
        part_(part),
        path_(path),
        id_(create(path)),
        file_(File::open_to_write(path)) {}
  void write(const std::string& split);

 private:
  static Hdf5Handle create(const std::string& path);
  int64_t add_dataset(const char* name, hid_t type, int64_t count) const;
  void add_text(const char* name, const std::string& value) const;
  void add_integer(const char* name, int64_t value) const;
  void add_facts(const std::string& split) const;
  void lay_out();
  void write_tokens();
  void write_document_offsets();
  void write_names() const;

  const CorpusSpool& spool_;
  const CorpusPart& part_;
  const std::string& path_;
  Hdf5Handle id_;
  File file_;
  int64_t tokens_at_ = 0, document_offsets_at_ = 0, checksums_at_ = 0, names_at_ = 0, model_at_ = 0;
  int64_t name_bytes_ = 0;
  std::string model_;
  ContentHash hash_;
};

Hdf5Handle ImageWriter::create(const std::string& path) {
  const Hdf5Handle access(H5Pcreate(H5P_FILE_ACCESS), H5Pclose, "write", path);
  // superblock 3: checksums on all structure, and a mark while the file is open for writing
  check_hdf5(H5Pset_libver_bounds(access, H5F_LIBVER_V110, H5F_LIBVER_V110), "write", path);
  check_hdf5(H5Pset_alignment(access, 4096, 4096), "write", path);
  const Hdf5Handle creation(H5Pcreate(H5P_FILE_CREATE), H5Pclose, "write", path);
  // all attributes in the header, none in a heap of their own
  check_hdf5(H5Pset_attr_phase_change(creation, 32, 0), "write", path);
  return {H5Fcreate(path.c_str(), H5F_ACC_TRUNC, creation, access), H5Fclose, "write", path};
}

int64_t ImageWriter::add_dataset(const char* name, hid_t type, int64_t count) const {
  const auto extent = hsize_t(count);
  const Hdf5Handle space(H5Screate_simple(1, &extent, nullptr), H5Sclose, "write", path_);
  const Hdf5Handle creation(H5Pcreate(H5P_DATASET_CREATE), H5Pclose, "write", path_);
  check_hdf5(H5Pset_alloc_time(creation, H5D_ALLOC_TIME_EARLY), "write", path_);
  check_hdf5(H5Pset_fill_time(creation, H5D_FILL_TIME_NEVER), "write", path_);
  const Hdf5Handle dataset(H5Dcreate2(id_, name, type, space, H5P_DEFAULT, creation, H5P_DEFAULT),
                           H5Dclose, "write", path_);
  return int64_t(H5Dget_offset(dataset));
}

void ImageWriter::add_text(const char* name, const std::string& value) const {
  const Hdf5Handle type(H5Tcopy(H5T_C_S1), H5Tclose, "write", path_);
  check_hdf5(H5Tset_size(type, value.size() + 1), "write", path_);
  const Hdf5Handle space(H5Screate(H5S_SCALAR), H5Sclose, "write", path_);
  const Hdf5Handle attribute(H5Acreate2(id_, name, type, space, H5P_DEFAULT, H5P_DEFAULT), H5Aclose,
                             "write", path_);
  check_hdf5(H5Awrite(attribute, type, value.c_str()), "write", path_);
}

void ImageWriter::add_integer(const char* name, int64_t value) const {
  const Hdf5Handle space(H5Screate(H5S_SCALAR), H5Sclose, "write", path_);
  const Hdf5Handle attribute(H5Acreate2(id_, name, H5T_STD_I64LE, space, H5P_DEFAULT, H5P_DEFAULT),
                             H5Aclose, "write", path_);
  check_hdf5(H5Awrite(attribute, H5T_NATIVE_INT64, &value), "write", path_);
}

void ImageWriter::lay_out() {
  tokens_at_ = add_dataset("tokens", spool_.token_bytes() == 2 ? H5T_STD_U16LE : H5T_STD_U32LE,
                           part_.token_count);
  document_offsets_at_ = add_dataset("document_offsets", H5T_STD_U64LE, part_.document_count + 1);
  checksums_at_ =
      add_dataset("block_checksums", H5T_STD_U64LE, (part_.token_count - 1) / kBlockTokens + 1);
  for (const std::string& name : spool_.names()) {
    name_bytes_ = std::max(name_bytes_, int64_t(name.size()));
  }
  if (name_bytes_ > 0) {
    const Hdf5Handle type(H5Tcopy(H5T_C_S1), H5Tclose, "write", path_);
    check_hdf5(H5Tset_size(type, size_t(name_bytes_)), "write", path_);
    check_hdf5(H5Tset_strpad(type, H5T_STR_NULLPAD), "write", path_);
    names_at_ = add_dataset("document_names", type, part_.document_count);
  }
  model_ = spool_.tokenizer().model();
  if (!model_.empty()) {
    model_at_ = add_dataset("tokenizer_model", H5T_STD_U8LE, int64_t(model_.size()));
  }
  hsize_t end = 0;
  check_hdf5(H5Fflush(id_, H5F_SCOPE_GLOBAL), "write", path_);
  check_hdf5(H5Fget_filesize(id_, &end), "write", path_);
  file_.reserve(int64_t(end));
}

void ImageWriter::write_tokens() {
  std::vector<std::byte> block;
  std::vector<uint64_t> checksums;
  for (int64_t first = 0; first < part_.token_count; first += kBlockTokens) {
    const int64_t count = std::min(kBlockTokens, part_.token_count - first);
    block.resize(size_t(count * spool_.token_bytes()));
    spool_.read_tokens(part_.first_token + first, block);
    hash_.add(block);
    checksums.push_back(XXH3_64bits(block.data(), block.size()));
    file_.write(tokens_at_ + first * spool_.token_bytes(), block);
  }
  file_.write(checksums_at_, std::as_bytes(std::span(checksums)));
}

void ImageWriter::write_document_offsets() {
  const int64_t zero = 0;
  file_.write(document_offsets_at_, std::as_bytes(std::span(&zero, 1)));
  hash_.add(std::as_bytes(std::span(&zero, 1)));
  std::vector<int64_t> ends;
  for (int64_t first = 0; first < part_.document_count; first += kBlockTokens) {
    ends.resize(size_t(std::min(kBlockTokens, part_.document_count - first)));
    spool_.read_ends(part_.first_document + first, ends);
    for (int64_t& end : ends) end = std::min(end - part_.first_token, part_.token_count);
    hash_.add(std::as_bytes(std::span(ends)));
    file_.write(document_offsets_at_ + (first + 1) * 8, std::as_bytes(std::span(ends)));
  }
}

void ImageWriter::write_names() const {
  if (name_bytes_ == 0) return;
  std::string names(size_t(part_.document_count * name_bytes_), '\0');
  for (int64_t i = 0; i < part_.document_count; ++i) {
    const std::string& name = spool_.names()[size_t(part_.first_document + i)];
    name.copy(&names[size_t(i * name_bytes_)], name.size());
  }
  file_.write(names_at_, std::as_bytes(std::span(names)));
}

void ImageWriter::add_facts(const std::string& split) const {
  const Tokenizer& tokenizer = spool_.tokenizer();
  add_text("format", kCorpusFormat);
  add_integer("version", kCorpusVersion);
  add_integer("token_count", part_.token_count);
  add_integer("document_count", part_.document_count);
  add_integer("vocabulary", tokenizer.vocabulary());
  add_integer("end_of_document", tokenizer.end_of_document());
  add_text("tokenizer_name", tokenizer.name());
  add_text("tokenizer_hash", tokenizer.hash());
  add_text("split", split);
  add_text("content_hash", hash_.hex());
  add_integer("block_tokens", kBlockTokens);
  add_text("created_by", "ringlet");
}

void ImageWriter::write(const std::string& split) {
  lay_out();
  write_tokens();
  write_document_offsets();
  write_names();
  if (!model_.empty()) file_.write(model_at_, std::as_bytes(std::span(model_)));
  add_facts(split);
  check_hdf5(H5Fflush(id_, H5F_SCOPE_GLOBAL), "write", path_);
  file_.sync();
  add_integer("complete", 1);
  check_hdf5(id_.reset(), "write", path_);
  file_.sync();
}

}  // namespace

void write_corpus_image(const CorpusSpool& spool, const CorpusPart& part, const std::string& split,
                        const std::string& path) {
  const std::lock_guard lock(hdf5_mutex());
  quieten_hdf5();
  ImageWriter(spool, part, path).write(split);
}

}  // namespace ringlet
