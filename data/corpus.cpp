#include "data/corpus.h"

#include <fmt/core.h>
#include <xxhash.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <filesystem>
#include <limits>

#include "data/content_hash.h"
#include "kernels/check.h"

namespace ringlet {

namespace {

constexpr const char* kMakeAgain = "Make the corpus again: ringlet prepare INPUT -o CORPUS.h5";

/// The version of the superblock; nothing else is read before it is known that this is an HDF5
/// file.
int superblock_version(const File& file) {
  constexpr std::array<uint8_t, 8> kSignature{0x89, 'H', 'D', 'F', '\r', '\n', 0x1a, '\n'};
  std::array<uint8_t, 9> head{};
  if (file.size_bytes() < 48) {
    throw Error(fmt::format("{} has {} bytes: it is not a corpus", file.path(), file.size_bytes()),
                kMakeAgain);
  }
  file.read(0, std::as_writable_bytes(std::span(head)));
  if (!std::equal(kSignature.begin(), kSignature.end(), head.begin()) || head[8] > 3) {
    throw Error(fmt::format("{} is not a corpus: it is not an HDF5 file", file.path()),
                "Text becomes a corpus with: ringlet prepare INPUT -o CORPUS.h5");
  }
  return head[8];
}

std::string temporary_folder() {
  const char* folder = std::getenv("TMPDIR");
  return folder != nullptr && *folder != '\0' ? folder : "/tmp";
}

}  // namespace

Corpus Corpus::open(const std::string& path) {
  Corpus corpus;
  corpus.path_ = path;
  corpus.file_ = File::open_to_read(path);
  const int superblock = superblock_version(corpus.file_);
  corpus.facts_ = probe_corpus(corpus.file_, corpus.unpacked_);
  if (corpus.facts_.own_format && superblock < 2) {
    corpus.refuse("its structure carries no checksums, so Ringlet did not write it");
  }
  if (corpus.facts_.needs_unpacking) {
    corpus.unpacked_ = File::unnamed(temporary_folder());
    corpus.facts_ = probe_corpus(corpus.file_, corpus.unpacked_);
  }
  corpus.check_counts();
  corpus.choose_vocabulary();
  corpus.load_document_offsets();
  corpus.load_answers();
  corpus.fingerprint_ =
      corpus.facts_.own_format ? corpus.facts_.content_hash.get() : corpus.sampled_fingerprint();
  return corpus;
}

void Corpus::refuse(const std::string& reason) const {
  throw Error(fmt::format("{}: {}", path_, reason), kMakeAgain);
}

std::string Corpus::name() const { return std::filesystem::path(path_).stem().string(); }

const File& Corpus::source_of(const DatasetFacts& dataset) const {
  return dataset.unpacked ? unpacked_ : file_;
}

void Corpus::check_place(const DatasetFacts& dataset, const char* name) const {
  if (dataset.count < 0) return;
  const int64_t size = source_of(dataset).size_bytes();
  const bool sane = dataset.value_bytes >= 1 && dataset.value_bytes <= kMaxNameBytes &&
                    dataset.offset_bytes >= 0 && dataset.offset_bytes <= size &&
                    dataset.count <= (size - dataset.offset_bytes) / dataset.value_bytes;
  if (!sane) {
    refuse(fmt::format("/{} claims {} values of {} bytes from byte {}, the file has {} bytes", name,
                       dataset.count, dataset.value_bytes, dataset.offset_bytes, size));
  }
}

void Corpus::check_counts() const {
  check_place(facts_.tokens, "tokens");
  check_place(facts_.document_offsets, "document_offsets");
  check_place(facts_.block_checksums, "block_checksums");
  check_place(facts_.document_names, "document_names");
  check_place(facts_.tokenizer_model, "tokenizer_model");
  check_place(facts_.answers, "answers");
  check_place(facts_.answer_distances, "answer_distances");
  if (facts_.tokens.count == 0) refuse("it holds no tokens");
  if (facts_.tokens.value_bytes != 2 && facts_.tokens.value_bytes != 4) {
    refuse(fmt::format("/tokens has numbers of {} bytes", facts_.tokens.value_bytes));
  }
  const int64_t offsets = facts_.document_offsets.count;
  if (offsets >= 0 && (offsets < 2 || facts_.document_offsets.value_bytes != 8)) {
    refuse(fmt::format("/document_offsets has {} values", offsets));
  }
  const int64_t answers = facts_.answers.count;
  if (answers != facts_.answer_distances.count || answers == 0 ||
      (answers > 0 &&
       (facts_.answers.value_bytes != 8 || facts_.answer_distances.value_bytes != 8))) {
    refuse(fmt::format("/answers has {} values, /answer_distances {}",
                       std::max<int64_t>(0, answers),
                       std::max<int64_t>(0, facts_.answer_distances.count)));
  }
  if (!facts_.own_format) return;
  const int64_t blocks = (facts_.tokens.count - 1) / kBlockTokens + 1;
  const bool agree =
      facts_.token_count == facts_.tokens.count && facts_.document_count == offsets - 1 &&
      facts_.block_tokens == kBlockTokens && facts_.block_checksums.count == blocks &&
      facts_.block_checksums.value_bytes == 8 && facts_.answer_count == answers &&
      (facts_.document_names.count < 0 || facts_.document_names.count == offsets - 1);
  if (!agree) refuse("its counts do not agree with its data");
  if (facts_.content_hash.get().size() != 32) refuse("it has no content hash");
}

void Corpus::choose_vocabulary() {
  if (!facts_.own_format) {
    const bool bytes = facts_.vocabulary < 0;
    if (bytes) facts_.vocabulary = 256;
    if (facts_.end_of_document < 0) facts_.end_of_document = facts_.vocabulary++;
    facts_.tokenizer_name.set(bytes ? "byte" : "ids");
  }
  if (facts_.vocabulary < 1 || facts_.vocabulary > std::numeric_limits<int32_t>::max() ||
      facts_.end_of_document < 0 || facts_.end_of_document >= facts_.vocabulary) {
    refuse(fmt::format("vocabulary {} with end of document {} cannot be", facts_.vocabulary,
                       facts_.end_of_document));
  }
  if (!facts_.own_format) facts_.tokenizer_hash.set(tokenizer()->hash());
}

std::vector<int64_t> Corpus::load(const DatasetFacts& dataset) const {
  std::vector<int64_t> values(size_t(std::max<int64_t>(0, dataset.count)));
  if (values.empty()) return values;
  source_of(dataset).read(dataset.offset_bytes, std::as_writable_bytes(std::span(values)));
  return values;
}

void Corpus::load_document_offsets() {
  if (facts_.document_offsets.count < 0) {
    document_offsets_ = {0, token_count()};
    return;
  }
  document_offsets_ = load(facts_.document_offsets);
  if (document_offsets_.front() != 0 || document_offsets_.back() != token_count()) {
    refuse("/document_offsets does not go from 0 to the number of tokens");
  }
  const auto wrong = std::adjacent_find(document_offsets_.begin(), document_offsets_.end(),
                                        std::greater_equal<>());
  if (wrong != document_offsets_.end()) {
    refuse(fmt::format("/document_offsets does not increase at document {}",
                       wrong - document_offsets_.begin()));
  }
}

void Corpus::load_answers() {
  answers_ = load(facts_.answers);
  answer_distances_ = load(facts_.answer_distances);
  auto document_end = document_offsets_.begin();
  for (size_t i = 0; i < answers_.size(); ++i) {
    const int64_t token = answers_[i], distance = answer_distances_[i];
    if (token < 0 || token >= token_count() || (i > 0 && token <= answers_[i - 1])) {
      refuse(fmt::format("/answers names token {} at place {}: they increase, below {}", token, i,
                         token_count()));
    }
    while (*document_end <= token) ++document_end;
    const int64_t inside = token - *std::prev(document_end);
    if (distance < 1 || distance > inside) {
      refuse(fmt::format("/answer_distances has {} at place {}, {} tokens into a document",
                         distance, i, inside));
    }
  }
}

int64_t Corpus::answer_end(int64_t first) const {
  CHECK(first >= 0 && first < std::ssize(answers_), "answer token ", first);
  size_t end = size_t(first) + 1;
  while (end < answers_.size() && answers_[end] == answers_[end - 1] + 1 &&
         answer_distances_[end] == answer_distances_[size_t(first)]) {
    ++end;
  }
  return int64_t(end);
}

std::string Corpus::document_name(int64_t document) const {
  CHECK(document >= 0 && document < document_count(), "document ", document);
  if (facts_.document_names.count < 0) return {};
  std::string name(size_t(facts_.document_names.value_bytes), '\0');
  file_.read(facts_.document_names.offset_bytes + document * facts_.document_names.value_bytes,
             std::as_writable_bytes(std::span(name)));
  return name.substr(0, name.find('\0'));
}

std::unique_ptr<Tokenizer> Corpus::tokenizer() const {
  if (tokenizer_name() == "byte") return make_byte_tokenizer();
  if (facts_.tokenizer_model.count < 0) {
    return make_id_tokenizer(tokenizer_name(), vocabulary(), end_of_document());
  }
  if (facts_.tokenizer_model.value_bytes != 1) refuse("/tokenizer_model is not a list of bytes");
  std::string model(size_t(facts_.tokenizer_model.count), '\0');
  file_.read(facts_.tokenizer_model.offset_bytes, std::as_writable_bytes(std::span(model)));
  auto tokenizer = make_sentencepiece_tokenizer(std::move(model));
  if (tokenizer->hash() != tokenizer_hash()) refuse("/tokenizer_model is damaged");
  return tokenizer;
}

template <class Stored>
void Corpus::read_as(int64_t first, std::span<int32_t> tokens) const {
  std::array<Stored, 16384> block;
  const File& source = source_of(facts_.tokens);
  const auto limit = static_cast<uint32_t>(vocabulary());
  for (size_t done = 0; done < tokens.size(); done += block.size()) {
    const size_t count = std::min(block.size(), tokens.size() - done);
    const int64_t at = first + int64_t(done);
    source.read(facts_.tokens.offset_bytes + at * int64_t(sizeof(Stored)),
                std::as_writable_bytes(std::span(block.data(), count)));
    for (size_t i = 0; i < count; ++i) {
      if (block[i] >= limit) {
        throw Error(fmt::format("{}: token {} is {}, the vocabulary has {} ids", path_,
                                at + int64_t(i), block[i], limit),
                    facts_.own_format ? "The file is damaged; make the corpus again."
                                      : "Set the attribute `vocabulary` of the file's root.");
      }
      tokens[done + i] = static_cast<int32_t>(block[i]);
    }
  }
}

void Corpus::read(int64_t first, std::span<int32_t> tokens) const {
  CHECK(first >= 0 && int64_t(tokens.size()) <= token_count() - first, "tokens ", first, " + ",
        tokens.size(), " of ", token_count());
  if (facts_.tokens.value_bytes == 2)
    read_as<uint16_t>(first, tokens);
  else
    read_as<uint32_t>(first, tokens);
}

void Corpus::add_lists_to(ContentHash& hash) const {
  for (const auto* list : {&document_offsets_, &answers_, &answer_distances_}) {
    if (!list->empty()) hash.add(std::as_bytes(std::span(*list)));
  }
}

std::string Corpus::sampled_fingerprint() const {
  constexpr int64_t kParts = 256, kPartTokens = 4096;
  ContentHash hash;
  const std::array<int64_t, 3> counts{token_count(), vocabulary(), end_of_document()};
  hash.add(std::as_bytes(std::span(counts)));
  add_lists_to(hash);
  std::vector<std::byte> part;
  for (int64_t i = 0; i < kParts; ++i) {
    const int64_t first = token_count() / kParts * i;
    const int64_t count = std::min(kPartTokens, token_count() - first);
    part.resize(size_t(count * facts_.tokens.value_bytes));
    source_of(facts_.tokens)
        .read(facts_.tokens.offset_bytes + first * facts_.tokens.value_bytes, part);
    hash.add(part);
  }
  return hash.hex();
}

void Corpus::verify() const {
  ContentHash hash;
  std::vector<int32_t> tokens;
  std::vector<std::byte> stored;
  for (int64_t first = 0; first < token_count(); first += kBlockTokens) {
    const int64_t count = std::min(kBlockTokens, token_count() - first);
    stored.resize(size_t(count * facts_.tokens.value_bytes));
    source_of(facts_.tokens)
        .read(facts_.tokens.offset_bytes + first * facts_.tokens.value_bytes, stored);
    hash.add(stored);
    if (facts_.own_format) {
      uint64_t expected = 0;
      file_.read(facts_.block_checksums.offset_bytes + first / kBlockTokens * 8,
                 std::as_writable_bytes(std::span(&expected, 1)));
      if (XXH3_64bits(stored.data(), stored.size()) != expected) {
        refuse(fmt::format("tokens {} to {} are damaged", first, first + count - 1));
      }
    }
    tokens.resize(size_t(count));
    read(first, tokens);
  }
  add_lists_to(hash);
  if (facts_.own_format && hash.hex() != fingerprint_) {
    refuse(answers_.empty() ? "/document_offsets is damaged"
                            : "/document_offsets, /answers or /answer_distances is damaged");
  }
}

}  // namespace ringlet
