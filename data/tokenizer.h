#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace ringlet {

/// Text to token ids and back. Immutable; any thread may call it.
/// Ids are in [0, vocabulary()); end_of_document() is one of them that no text gives.
class Tokenizer {
 public:
  virtual ~Tokenizer() = default;
  virtual std::string name() const = 0;
  virtual int64_t vocabulary() const = 0;
  virtual int64_t end_of_document() const = 0;
  virtual std::vector<int32_t> encode(std::string_view text) const = 0;
  /// end_of_document and ids beyond the vocabulary give no text.
  virtual std::string decode(std::span<const int32_t> ids) const = 0;
  /// Bytes of text that the ids stand for, each on its own: a character that is cut counts in part.
  /// Nothing where the ids' text is not known.
  virtual std::optional<int64_t> text_bytes(std::span<const int32_t> ids) const = 0;
  /// The bytes from which make_tokenizer makes it again; empty where the name and the sizes
  /// suffice.
  virtual std::string model() const { return {}; }
  /// Two tokenizers with the same hash give the same ids.
  std::string hash() const;
};

/// 256 bytes and end_of_document = 256.
std::unique_ptr<Tokenizer> make_byte_tokenizer();

/// Ids that were made elsewhere; their text is their decimal numbers with blanks between them.
/// Throws UsageError unless 0 <= end_of_document < vocabulary <= 2^31 - 1.
std::unique_ptr<Tokenizer> make_id_tokenizer(std::string name, int64_t vocabulary,
                                             int64_t end_of_document);

/// The content of a SentencePiece .model file; end_of_document is one more id behind its pieces.
/// Throws Error when it is not one.
std::unique_ptr<Tokenizer> make_sentencepiece_tokenizer(std::string model);

/// Trains a SentencePiece model (byte-pair merges, byte fallback, no normalisation: valid UTF-8
/// comes back as it was) of `pieces` pieces on the sample. Throws Error when the sample is too
/// small for them.
std::unique_ptr<Tokenizer> train_sentencepiece(const std::vector<std::string>& sample,
                                               int64_t pieces);

/// A text that grows piece by piece, given to `take` in parts of at most 16 KiB, cut where a token
/// hardly ever reaches across: behind a line, before a blank, or at the least between characters.
class TextCutter {
 public:
  using Take = std::function<void(std::string_view text)>;
  explicit TextCutter(Take take) : take_(std::move(take)) {}
  void append(std::string_view text);
  /// The text is complete; the next one may begin.
  void finish();

 private:
  void cut();
  Take take_;
  std::string waiting_;
};

}  // namespace ringlet
