#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "data/file.h"
#include "data/tokenizer.h"

namespace ringlet {

/// Documents on their way into a corpus, kept in unnamed files beside the output: memory does not
/// grow with their number (names are kept for the first 100,000 documents, or for none).
class CorpusSpool {
 public:
  /// Throws Error when `folder` cannot be written to. `tokenizer` must outlive the spool.
  CorpusSpool(const std::string& folder, const Tokenizer& tokenizer);
  /// More tokens of the current document. Throws Error when the disk gets too full to finish.
  void append(std::span<const int32_t> tokens);
  /// Token `place` of the current document, counted from its first, has to be predicted; it could
  /// be looked up `distance` tokens before. Places increase.
  void add_answer(int64_t place, int64_t distance);
  /// The current document is complete; one without tokens is counted and dropped.
  void end_document(std::string_view name);
  /// Nothing more comes; before any of the following.
  void finish();

  const Tokenizer& tokenizer() const { return tokenizer_; }
  int64_t token_count() const { return token_count_; }
  int64_t document_count() const { return ends_.size(); }
  int64_t empty_documents() const { return empty_documents_; }
  int64_t token_bytes() const { return token_bytes_; }
  /// Where `document` ends, in tokens.
  void read_ends(int64_t document, std::span<int64_t> ends) const { ends_.read(document, ends); }
  void read_tokens(int64_t first, std::span<std::byte> tokens) const;
  std::span<const std::string> names() const { return names_; }
  int64_t answer_count() const { return answers_.size(); }
  /// Indices of answer tokens, and their distances.
  void read_answers(int64_t first, std::span<int64_t> answers) const {
    answers_.read(first, answers);
  }
  void read_distances(int64_t first, std::span<int64_t> distances) const {
    distances_.read(first, distances);
  }
  /// The first answer at or behind a token; answer_count() where there is none.
  int64_t first_answer_from(int64_t token) const;

 private:
  static constexpr int64_t kDiskCheckBytes = 64 << 20;
  std::string folder_;
  const Tokenizer& tokenizer_;
  int64_t token_bytes_;
  Spool<uint16_t> narrow_;
  Spool<uint32_t> wide_;
  Spool<int64_t> ends_, answers_, distances_;
  std::vector<std::string> names_;
  bool keeps_names_ = true;
  int64_t token_count_ = 0, document_start_ = 0, empty_documents_ = 0;
  int64_t next_disk_check_ = kDiskCheckBytes;
};

/// A range of the spooled tokens that becomes a corpus; its documents are cut at the ends of the
/// range.
struct CorpusPart {
  int64_t first_token = 0, token_count = 0;
  int64_t first_document = 0, document_count = 0;
};

/// Cuts the last `share` of the tokens off: at the document boundary that is nearest, or, when
/// there is one document only, inside it. Both parts have at least one token; needs two. {all} when
/// share is 0.
std::vector<CorpusPart> split_spool(const CorpusSpool& spool, double share);

/// A finished corpus under a temporary name beside its own: written, synced, read back and
/// verified. It disappears with this object, or takes its own name and replaces what had it.
class PendingCorpus {
 public:
  /// Throws Error; then nothing is left behind.
  PendingCorpus(const CorpusSpool& spool, const CorpusPart& part, const std::string& split,
                const std::string& path);
  ~PendingCorpus();
  PendingCorpus(const PendingCorpus&) = delete;
  PendingCorpus& operator=(const PendingCorpus&) = delete;
  void publish();

 private:
  std::string path_, temporary_;
};

}  // namespace ringlet
