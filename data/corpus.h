#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "data/corpus_facts.h"
#include "data/file.h"
#include "data/tokenizer.h"

namespace ringlet {

class ContentHash;

/// A file of token documents, open for reading. Immutable; any number of threads may read.
///
/// Opening trusts nothing: the file's structure is read by a child process, then compared with the
/// file's size and checked. Afterwards the HDF5 library is out of the way: tokens come by plain
/// reads at known places. Files of other programs are read too: /tokens (whole numbers), optionally
/// /document_offsets (default: one document), /answers with /answer_distances, and the attributes
/// `vocabulary` (count of ids; default: bytes) and `end_of_document` (an id; default: one more).
/// Chunked or compressed ones are first unpacked to a temporary file ($TMPDIR). Memory: 8 bytes per
/// document, 16 per answer token. Errors name the file and the reason.
class Corpus {
 public:
  static Corpus open(const std::string& path);

  const std::string& path() const { return path_; }
  /// The file's name without folder and ending.
  std::string name() const;
  int64_t token_count() const { return facts_.tokens.count; }
  int64_t document_count() const { return int64_t(document_offsets_.size()) - 1; }
  /// Count of all ids, end_of_document among them.
  int64_t vocabulary() const { return facts_.vocabulary; }
  int64_t end_of_document() const { return facts_.end_of_document; }
  /// First token of each document, then token_count; strictly increasing.
  std::span<const int64_t> document_offsets() const { return document_offsets_; }
  /// The tokens that have to be predicted, by their indices, increasing; no document begins with
  /// one. Empty: all tokens count.
  std::span<const int64_t> answers() const { return answers_; }
  /// Tokens from the place where each answer token could be looked up to it: 1 or more, inside its
  /// document.
  std::span<const int64_t> answer_distances() const { return answer_distances_; }
  /// An answer is a run of consecutive tokens at one distance: the place in answers() behind the
  /// one that begins at `first`.
  int64_t answer_end(int64_t first) const;
  /// Empty where the file has no names.
  std::string document_name(int64_t document) const;
  std::string split() const { return facts_.split.get(); }
  std::string tokenizer_name() const { return facts_.tokenizer_name.get(); }
  std::string tokenizer_hash() const { return facts_.tokenizer_hash.get(); }
  /// The tokenizer that the corpus carries with it.
  std::unique_ptr<Tokenizer> tokenizer() const;
  /// Hash of the content, 32 hexadecimal digits. Of a file of another program: of its counts and of
  /// parts of it.
  const std::string& fingerprint() const { return fingerprint_; }
  int64_t file_bytes() const { return file_.size_bytes(); }

  /// tokens.size() tokens from `first`, in [0, vocabulary). Throws Error that names the corpus and
  /// the place of a token that is not.
  void read(int64_t first, std::span<int32_t> tokens) const;

  /// Reads everything and compares it with the checksums. Throws Error that names the damaged
  /// tokens.
  void verify() const;

 private:
  Corpus() = default;
  [[noreturn]] void refuse(const std::string& reason) const;
  const File& source_of(const DatasetFacts& dataset) const;
  void check_place(const DatasetFacts& dataset, const char* name) const;
  void check_counts() const;
  void choose_vocabulary();
  std::vector<int64_t> load(const DatasetFacts& dataset) const;
  void load_document_offsets();
  void load_answers();
  void add_lists_to(ContentHash& hash) const;
  std::string sampled_fingerprint() const;
  template <class Stored>
  void read_as(int64_t first, std::span<int32_t> tokens) const;

  std::string path_;
  File file_, unpacked_;
  CorpusFacts facts_;
  std::vector<int64_t> document_offsets_, answers_, answer_distances_;
  std::string fingerprint_;
};

}  // namespace ringlet
