#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace ringlet {

enum class CorpusCheck : uint8_t {
  structure,
  everything
};  // everything: read it all, compare checksums

struct CorpusReport {
  std::string path, fingerprint, split, tokenizer, tokenizer_hash;
  int64_t token_count = 0, document_count = 0, vocabulary = 0, end_of_document = 0, file_bytes = 0;
  CorpusCheck checked = CorpusCheck::structure;
  int64_t longest_tokens = 0, median_tokens = 0;

  struct LengthBin {  // documents of [from_tokens, 2 * from_tokens)
    int64_t from_tokens = 0, document_count = 0, token_count = 0;
  };
  std::vector<LengthBin> lengths;  // powers of two, from the shortest to the longest document

  struct Context {
    int64_t tokens = 0;
    double share =
        0;  // of all tokens: those with at least so many of their own document before them
  };
  std::vector<Context> contexts;  // 1024, 4096, ... up to the longest document

  struct Longest {
    std::string name;
    int64_t token_count = 0;
  };
  std::vector<Longest> longest;  // at most five

  int64_t answer_count = 0, answer_tokens = 0;  // an answer is one token or several (Corpus::answer_end)
  struct DistanceBin {  // answers at distances of [from_tokens, 2 * from_tokens)
    int64_t from_tokens = 0, answer_count = 0;
  };
  std::vector<DistanceBin> distances;  // powers of two, from the least to the largest
};

/// What a corpus holds, and what context its documents can give. Throws Error for a damaged corpus.
CorpusReport inspect_corpus(const std::string& path, CorpusCheck check);

/// A page with bars for people, and one JSON object for programs.
std::string to_text(const CorpusReport& report);
std::string to_json(const CorpusReport& report);

}  // namespace ringlet
