#include "data/corpus_image.h"

#include <fmt/core.h>
#include <xxhash.h>

#include <algorithm>

#include "data/content_hash.h"
#include "data/hdf5_child.h"
#include "data/hdf5_handle.h"

namespace ringlet {

namespace {

/// The part of writing that the HDF5 library does, in a child: structure, no bulk.
class ImageStructure {
 public:
  /// A new file, or an existing one to add to.
  ImageStructure(const std::string& path, unsigned mode) : path_(path), id_(open(path, mode)) {}
  DatasetFacts add_dataset(const char* name, hid_t type, int64_t count) const;
  DatasetFacts add_texts(const char* name, int64_t text_bytes, int64_t count) const;
  void add_text(const char* name, const std::string& value) const;
  void add_integer(const char* name, int64_t value) const;
  void flush() const { check_hdf5(H5Fflush(id_, H5F_SCOPE_GLOBAL), "write", path_); }
  void close() { check_hdf5(id_.reset(), "write", path_); }

 private:
  static Hdf5Handle open(const std::string& path, unsigned mode);
  const std::string& path_;
  Hdf5Handle id_;
};

Hdf5Handle ImageStructure::open(const std::string& path, unsigned mode) {
  quieten_hdf5();
  const Hdf5Handle access(H5Pcreate(H5P_FILE_ACCESS), H5Pclose, "write", path);
  // superblock 3: checksums on all structure, and a mark while the file is open for writing
  check_hdf5(H5Pset_libver_bounds(access, H5F_LIBVER_V110, H5F_LIBVER_V110), "write", path);
  check_hdf5(H5Pset_alignment(access, 4096, 4096), "write", path);
  if (mode == H5F_ACC_RDWR) return {H5Fopen(path.c_str(), mode, access), H5Fclose, "write", path};
  const Hdf5Handle creation(H5Pcreate(H5P_FILE_CREATE), H5Pclose, "write", path);
  // all attributes in the header, none in a heap of their own
  check_hdf5(H5Pset_attr_phase_change(creation, 32, 0), "write", path);
  // no times: equal corpora are equal files
  check_hdf5(H5Pset_obj_track_times(creation, false), "write", path);
  return {H5Fcreate(path.c_str(), mode, creation, access), H5Fclose, "write", path};
}

DatasetFacts ImageStructure::add_dataset(const char* name, hid_t type, int64_t count) const {
  const auto extent = hsize_t(count);
  const Hdf5Handle space(H5Screate_simple(1, &extent, nullptr), H5Sclose, "write", path_);
  const Hdf5Handle creation(H5Pcreate(H5P_DATASET_CREATE), H5Pclose, "write", path_);
  // allocated at once, so that its place is known before its values are
  check_hdf5(H5Pset_alloc_time(creation, H5D_ALLOC_TIME_EARLY), "write", path_);
  check_hdf5(H5Pset_fill_time(creation, H5D_FILL_TIME_NEVER), "write", path_);
  check_hdf5(H5Pset_obj_track_times(creation, false), "write", path_);
  const Hdf5Handle dataset(H5Dcreate2(id_, name, type, space, H5P_DEFAULT, creation, H5P_DEFAULT),
                           H5Dclose, "write", path_);
  return {count, int64_t(H5Dget_offset(dataset)), int64_t(H5Tget_size(type)), false};
}

DatasetFacts ImageStructure::add_texts(const char* name, int64_t text_bytes, int64_t count) const {
  const Hdf5Handle type(H5Tcopy(H5T_C_S1), H5Tclose, "write", path_);
  check_hdf5(H5Tset_size(type, size_t(text_bytes)), "write", path_);
  check_hdf5(H5Tset_strpad(type, H5T_STR_NULLPAD), "write", path_);
  return add_dataset(name, type, count);
}

void ImageStructure::add_text(const char* name, const std::string& value) const {
  const Hdf5Handle type(H5Tcopy(H5T_C_S1), H5Tclose, "write", path_);
  check_hdf5(H5Tset_size(type, value.size() + 1), "write", path_);
  const Hdf5Handle space(H5Screate(H5S_SCALAR), H5Sclose, "write", path_);
  const Hdf5Handle attribute(H5Acreate2(id_, name, type, space, H5P_DEFAULT, H5P_DEFAULT), H5Aclose,
                             "write", path_);
  check_hdf5(H5Awrite(attribute, type, value.c_str()), "write", path_);
}

void ImageStructure::add_integer(const char* name, int64_t value) const {
  const Hdf5Handle space(H5Screate(H5S_SCALAR), H5Sclose, "write", path_);
  const Hdf5Handle attribute(H5Acreate2(id_, name, H5T_STD_I64LE, space, H5P_DEFAULT, H5P_DEFAULT),
                             H5Aclose, "write", path_);
  check_hdf5(H5Awrite(attribute, H5T_NATIVE_INT64, &value), "write", path_);
}

/// Writes one image: the library lays it out, the bulk goes past the library to the places it gave.
class ImageWriter {
 public:
  ImageWriter(const CorpusSpool& spool, const CorpusPart& part, const std::string& path)
      : spool_(spool),
        part_(part),
        path_(path),
        model_(spool.tokenizer().model()),
        first_answer_(spool.first_answer_from(part.first_token)),
        answer_count_(spool.first_answer_from(part.first_token + part.token_count) -
                      first_answer_) {}
  void write(const std::string& split);

 private:
  CorpusFacts lay_out() const;
  void write_tokens();
  void write_document_offsets();
  void write_answers();
  void write_names() const;
  CorpusFacts add_facts(const std::string& split) const;

  const CorpusSpool& spool_;
  const CorpusPart& part_;
  const std::string& path_;
  std::string model_;
  int64_t first_answer_, answer_count_;
  CorpusFacts layout_;
  File file_;
  ContentHash hash_;
};

CorpusFacts ImageWriter::lay_out() const {
  ImageStructure image(path_, H5F_ACC_TRUNC);
  CorpusFacts layout;
  layout.tokens = image.add_dataset(
      "tokens", spool_.token_bytes() == 2 ? H5T_STD_U16LE : H5T_STD_U32LE, part_.token_count);
  layout.document_offsets =
      image.add_dataset("document_offsets", H5T_STD_U64LE, part_.document_count + 1);
  layout.block_checksums = image.add_dataset("block_checksums", H5T_STD_U64LE,
                                             (part_.token_count - 1) / kBlockTokens + 1);
  size_t name_bytes = 0;
  for (const std::string& name : spool_.names()) name_bytes = std::max(name_bytes, name.size());
  if (name_bytes > 0) {
    layout.document_names =
        image.add_texts("document_names", int64_t(name_bytes), part_.document_count);
  }
  if (!model_.empty()) {
    layout.tokenizer_model =
        image.add_dataset("tokenizer_model", H5T_STD_U8LE, int64_t(model_.size()));
  }
  if (answer_count_ > 0) {
    layout.answers = image.add_dataset("answers", H5T_STD_U64LE, answer_count_);
    layout.answer_distances = image.add_dataset("answer_distances", H5T_STD_U64LE, answer_count_);
  }
  image.close();
  return layout;
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
    file_.write(layout_.tokens.offset_bytes + first * spool_.token_bytes(), block);
  }
  file_.write(layout_.block_checksums.offset_bytes, std::as_bytes(std::span(checksums)));
}

void ImageWriter::write_document_offsets() {
  const int64_t at = layout_.document_offsets.offset_bytes, zero = 0;
  file_.write(at, std::as_bytes(std::span(&zero, 1)));
  hash_.add(std::as_bytes(std::span(&zero, 1)));
  std::vector<int64_t> ends;
  for (int64_t first = 0; first < part_.document_count; first += kBlockTokens) {
    ends.resize(size_t(std::min(kBlockTokens, part_.document_count - first)));
    spool_.read_ends(part_.first_document + first, ends);
    for (int64_t& end : ends) end = std::min(end - part_.first_token, part_.token_count);
    hash_.add(std::as_bytes(std::span(ends)));
    file_.write(at + (first + 1) * 8, std::as_bytes(std::span(ends)));
  }
}

/// All answers, then all distances: the order in which they are hashed.
void ImageWriter::write_answers() {
  std::vector<int64_t> values;
  for (int64_t first = 0; first < answer_count_; first += kBlockTokens) {
    values.resize(size_t(std::min(kBlockTokens, answer_count_ - first)));
    spool_.read_answers(first_answer_ + first, values);
    for (int64_t& answer : values) answer -= part_.first_token;
    hash_.add(std::as_bytes(std::span(values)));
    file_.write(layout_.answers.offset_bytes + first * 8, std::as_bytes(std::span(values)));
  }
  for (int64_t first = 0; first < answer_count_; first += kBlockTokens) {
    values.resize(size_t(std::min(kBlockTokens, answer_count_ - first)));
    spool_.read_distances(first_answer_ + first, values);
    hash_.add(std::as_bytes(std::span(values)));
    file_.write(layout_.answer_distances.offset_bytes + first * 8,
                std::as_bytes(std::span(values)));
  }
}

void ImageWriter::write_names() const {
  const DatasetFacts& place = layout_.document_names;
  if (place.count < 0) return;
  std::string names(size_t(place.count * place.value_bytes), '\0');
  for (int64_t i = 0; i < place.count; ++i) {
    const std::string& name = spool_.names()[size_t(part_.first_document + i)];
    name.copy(&names[size_t(i * place.value_bytes)], name.size());
  }
  file_.write(place.offset_bytes, std::as_bytes(std::span(names)));
}

CorpusFacts ImageWriter::add_facts(const std::string& split) const {
  const Tokenizer& tokenizer = spool_.tokenizer();
  ImageStructure image(path_, H5F_ACC_RDWR);
  image.add_text("format", kCorpusFormat);
  image.add_integer("version", kCorpusVersion);
  image.add_integer("token_count", part_.token_count);
  image.add_integer("document_count", part_.document_count);
  if (answer_count_ > 0) image.add_integer("answer_count", answer_count_);
  image.add_integer("vocabulary", tokenizer.vocabulary());
  image.add_integer("end_of_document", tokenizer.end_of_document());
  image.add_text("tokenizer_name", tokenizer.name());
  image.add_text("tokenizer_hash", tokenizer.hash());
  image.add_text("split", split);
  image.add_text("content_hash", hash_.hex());
  image.add_integer("block_tokens", kBlockTokens);
  image.add_text("created_by", "ringlet");
  image.flush();
  image.add_integer("complete", 1);
  image.close();
  return {};
}

void ImageWriter::write(const std::string& split) {
  constexpr int64_t kCpuSeconds = 10;
  const Error crashed(fmt::format("cannot write {}: the HDF5 library crashed", path_),
                      "Check the room on that disk, and who may write there.");
  layout_ = run_hdf5_child(kCpuSeconds, crashed, [&] { return lay_out(); });
  file_ = File::open_to_write(path_);
  file_.reserve(file_.size_bytes());
  write_tokens();
  write_document_offsets();
  write_answers();
  write_names();
  if (!model_.empty()) {
    file_.write(layout_.tokenizer_model.offset_bytes, std::as_bytes(std::span(model_)));
  }
  file_.sync();
  run_hdf5_child(kCpuSeconds, crashed, [&] { return add_facts(split); });
  file_.sync();
}

}  // namespace

void write_corpus_image(const CorpusSpool& spool, const CorpusPart& part, const std::string& split,
                        const std::string& path) {
  ImageWriter(spool, part, path).write(split);
}

}  // namespace ringlet
