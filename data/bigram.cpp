#include "data/bigram.h"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/check.h"

namespace ringlet {

namespace {

/// counts[token * vocabulary + next], the next of a document's last token being end_of_document.
std::vector<double> count_pairs(const Corpus& corpus) {
  const auto vocabulary = size_t(corpus.vocabulary());
  const auto offsets = corpus.document_offsets();
  std::vector<double> counts(vocabulary * vocabulary);
  std::vector<int32_t> block;
  size_t document_end = 1;
  for (int64_t first = 0; first < corpus.token_count(); first += kBlockTokens) {
    const int64_t count = std::min(kBlockTokens, corpus.token_count() - first);
    block.resize(size_t(std::min(count + 1, corpus.token_count() - first)));
    corpus.read(first, block);
    for (int64_t i = 0; i < count; ++i) {
      const bool last = first + i + 1 == offsets[document_end];
      if (last) ++document_end;
      const auto next = last ? corpus.end_of_document() : block[size_t(i + 1)];
      counts[size_t(block[size_t(i)]) * vocabulary + size_t(next)] += 1;
    }
  }
  return counts;
}

double loss_with(const std::vector<double>& seen, const std::vector<double>& asked,
                 size_t vocabulary, double alpha) {
  double loss = 0, tokens = 0;
  for (size_t row = 0; row < seen.size(); row += vocabulary) {
    double total = alpha * double(vocabulary);
    for (size_t i = 0; i < vocabulary; ++i) total += seen[row + i];
    for (size_t i = 0; i < vocabulary; ++i) {
      if (asked[row + i] == 0) continue;
      loss -= asked[row + i] * std::log((seen[row + i] + alpha) / total);
      tokens += asked[row + i];
    }
  }
  return loss / tokens;
}

}  // namespace

double bigram_loss(const Corpus& train, const Corpus& validation) {
  if (train.tokenizer_hash() != validation.tokenizer_hash()) {
    throw Error(fmt::format("{} and {} have different tokenizers", train.path(), validation.path()),
                "Prepare both with the same tokenizer.");
  }
  if (train.vocabulary() > 1024) {
    throw Error(fmt::format("bigrams of {} ids are not counted", train.vocabulary()),
                "Use the byte tokenizer.");
  }
  const auto seen = count_pairs(train), asked = count_pairs(validation);
  double best = std::numeric_limits<double>::infinity();
  for (const double alpha : {1.0, 0.1, 0.01, 0.001}) {
    best = std::min(best, loss_with(seen, asked, size_t(train.vocabulary()), alpha));
  }
  return best;
}

}  // namespace ringlet
