#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>

#include "data/file.h"

namespace ringlet {

/// The corpus format, version 1: an HDF5 file (superblock 2 or 3, all data contiguous, little
/// endian) with
///   /tokens             u16 (vocabulary <= 65536) or u32 [token_count]; no end-of-document tokens
///   /document_offsets   u64 [document_count + 1], from 0 to token_count, strictly increasing
///   /block_checksums    u64: XXH3 of the bytes of each `block_tokens` tokens
///   /document_names     fixed-length strings [document_count], optional
///   /tokenizer_model    u8, optional: the SentencePiece model
///   /answers            u64 [answer_count], optional: indices of the tokens that count, increasing
///   /answer_distances   u64 [answer_count]: tokens from where each could be looked up to it
/// and attributes of the root: format, version, complete (written last), token_count,
/// document_count, answer_count (where there are answers), vocabulary, end_of_document,
/// tokenizer_name, tokenizer_hash, split, content_hash (XXH3 of tokens, then offsets, answers,
/// distances), block_tokens, created_by.
inline constexpr const char* kCorpusFormat = "ringlet-corpus";
inline constexpr int64_t kCorpusVersion = 1;
inline constexpr int64_t kBlockTokens = 1 << 20;
inline constexpr int64_t kMaxNameBytes = 256;

/// Where a dataset's values lie as plain little-endian numbers.
struct DatasetFacts {
  int64_t count = -1;  // -1: the file has no such dataset
  int64_t offset_bytes = 0;
  int64_t value_bytes = 0;
  bool unpacked = false;  // offset_bytes counts in the file of unpacked values
};

/// A short text that needs no memory elsewhere.
template <size_t kBytes>
struct ShortText {
  std::array<char, kBytes> bytes{};
  void set(std::string_view text) {
    bytes.fill(0);
    text.substr(0, kBytes - 1).copy(bytes.data(), kBytes - 1);
  }
  std::string get() const {
    const std::string_view all(bytes.data(), kBytes);
    return std::string(all.substr(0, all.find('\0')));
  }
};

/// What an HDF5 file says of itself; plain memory, so that it can be handed from process to
/// process. Nothing in it has been compared with the size of the file yet.
struct CorpusFacts {
  DatasetFacts tokens, document_offsets, block_checksums, document_names, tokenizer_model;
  DatasetFacts answers, answer_distances;
  bool own_format = false;       // written by Ringlet, not by somebody else
  bool needs_unpacking = false;  // a dataset is chunked, compressed or of another number type
  int64_t token_count = -1, document_count = -1, vocabulary = -1, end_of_document = -1;
  int64_t block_tokens = -1, answer_count = -1;
  ShortText<kMaxNameBytes> tokenizer_name, tokenizer_hash, split, content_hash;
};

/// Reads the facts of a file through the HDF5 library, in a child process with limited memory and
/// time: a damaged or hostile file may crash or hang that one. Datasets that are not plain numbers
/// on the disk are copied to `unpacked` (u32 tokens, u64 offsets) when it is open, and only noted
/// when it is not. Refused: links that are not hard, external storage, virtual datasets, other
/// filters than deflate, shuffle and fletcher32, other ranks and number classes. Throws Error that
/// names the file and the reason.
CorpusFacts probe_corpus(const File& file, const File& unpacked);

}  // namespace ringlet
