#include "data/tokenizer.h"

#include <fmt/core.h>
#include <xxhash.h>

#include <algorithm>
#include <charconv>
#include <limits>

#include "kernels/check.h"

namespace ringlet {

namespace {

// small enough for the encoder of SentencePiece to stay in the cache: twice as fast as with 1 MiB
constexpr size_t kPartBytes = 16 << 10;

class ByteTokenizer : public Tokenizer {
 public:
  std::string name() const override { return "byte"; }
  int64_t vocabulary() const override { return 257; }
  int64_t end_of_document() const override { return 256; }
  std::vector<int32_t> encode(std::string_view text) const override {
    std::vector<int32_t> ids(text.size());
    for (size_t i = 0; i < text.size(); ++i) ids[i] = static_cast<uint8_t>(text[i]);
    return ids;
  }
  std::string decode(std::span<const int32_t> ids) const override {
    std::string text;
    for (const int32_t id : ids) {
      if (id >= 0 && id < 256) text.push_back(static_cast<char>(id));
    }
    return text;
  }
  std::optional<int64_t> text_bytes(std::span<const int32_t> ids) const override {
    return std::ranges::count_if(ids, [](int32_t id) { return id >= 0 && id < 256; });
  }
};

class IdTokenizer : public Tokenizer {
 public:
  IdTokenizer(std::string name, int64_t vocabulary, int64_t end_of_document)
      : name_(std::move(name)), vocabulary_(vocabulary), end_of_document_(end_of_document) {
    if (vocabulary > std::numeric_limits<int32_t>::max() || end_of_document < 0 ||
        end_of_document >= vocabulary) {
      throw UsageError(fmt::format("vocabulary {} with end of document {} cannot be", vocabulary,
                                   end_of_document),
                       "The vocabulary counts all ids, end of document among them.");
    }
  }
  std::string name() const override { return name_; }
  int64_t vocabulary() const override { return vocabulary_; }
  int64_t end_of_document() const override { return end_of_document_; }

  std::vector<int32_t> encode(std::string_view text) const override {
    std::vector<int32_t> ids;
    const char* at = text.data();
    const char* const end = at + text.size();
    while (at != end) {
      if (*at == ' ' || *at == '\n') {
        ++at;
        continue;
      }
      int32_t id = -1;
      const auto [rest, error] = std::from_chars(at, end, id);
      if (error != std::errc() || id < 0 || id >= vocabulary_) {
        throw UsageError(
            fmt::format("\"{}\" is not a list of token ids below {}", text, vocabulary_),
            "This corpus has no tokenizer of its own: give ids with blanks between.");
      }
      ids.push_back(id);
      at = rest;
    }
    return ids;
  }

  std::string decode(std::span<const int32_t> ids) const override {
    std::string text;
    for (const int32_t id : ids) {
      if (id >= 0 && id < vocabulary_ && id != end_of_document_) text += fmt::format("{} ", id);
    }
    return text;
  }

  std::optional<int64_t> text_bytes(std::span<const int32_t>) const override { return {}; }

 private:
  std::string name_;
  int64_t vocabulary_, end_of_document_;
};

}  // namespace

std::string Tokenizer::hash() const {
  const std::string key =
      fmt::format("{} {} {} ", name(), vocabulary(), end_of_document()) + model();
  return fmt::format("{:016x}", XXH3_64bits(key.data(), key.size()));
}

std::unique_ptr<Tokenizer> make_byte_tokenizer() { return std::make_unique<ByteTokenizer>(); }

std::unique_ptr<Tokenizer> make_id_tokenizer(std::string name, int64_t vocabulary,
                                             int64_t end_of_document) {
  return std::make_unique<IdTokenizer>(std::move(name), vocabulary, end_of_document);
}

void TextCutter::append(std::string_view text) {
  while (!text.empty()) {
    const size_t room = kPartBytes - waiting_.size();
    waiting_ += text.substr(0, room);
    text.remove_prefix(std::min(room, text.size()));
    if (waiting_.size() == kPartBytes) cut();
  }
}

void TextCutter::finish() {
  if (!waiting_.empty()) take_(waiting_);
  waiting_.clear();
}

void TextCutter::cut() {
  size_t end = waiting_.rfind('\n') + 1;  // npos + 1 is 0
  if (end == 0) end = waiting_.rfind(' ');
  if (end == 0 || end == std::string::npos) {
    end = waiting_.size() - 1;
    // 10xxxxxx continues a character; none is longer than four bytes
    while (end > kPartBytes - 4 && (waiting_[end] & 0xc0) == 0x80) --end;
  }
  take_(std::string_view(waiting_).substr(0, end));
  waiting_.erase(0, end);
}

}  // namespace ringlet
