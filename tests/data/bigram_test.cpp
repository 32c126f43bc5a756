#include "data/bigram.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "tests/data/data_support.h"

namespace ringlet::test {

namespace {

TEST(BigramTest, EqualsTheLossCountedByHand) {
  const Folder folder;
  // a: b three times; b: a once, end three times. Asked: a -> b, b -> a, a -> end (never seen), a
  // -> b, b -> end.
  const Corpus train =
      Corpus::open(write_byte_corpus(folder.file("train.h5"), {"abab", "ab", "b"}));
  const Corpus asked = Corpus::open(write_byte_corpus(folder.file("asked.h5"), {"aba", "ab"}));
  double best = INFINITY;
  for (const double alpha : {1.0, 0.1, 0.01, 0.001}) {
    const double a_total = 3 + 257 * alpha, b_total = 4 + 257 * alpha;
    const double loss = -(2 * std::log((3 + alpha) / a_total) + std::log((1 + alpha) / b_total) +
                          std::log(alpha / a_total) + std::log((3 + alpha) / b_total)) /
                        5;
    best = std::min(best, loss);
  }
  EXPECT_NEAR(bigram_loss(train, asked), best, 1e-12);
}

TEST(BigramTest, CountsDocumentsAcrossBlocks) {
  const Folder folder;
  // one block of tokens and a bit: the pair across the blocks must not be lost
  const std::string text(size_t(kBlockTokens) + 10, 'a');
  const Corpus corpus = Corpus::open(write_byte_corpus(folder.file("c.h5"), {text}));
  const double n = double(text.size()), alpha = 0.001, total = n + 257 * alpha;
  const double expected =
      -((n - 1) * std::log((n - 1 + alpha) / total) + std::log((1 + alpha) / total)) / n;
  EXPECT_NEAR(bigram_loss(corpus, corpus), expected, 1e-9);
}

TEST(BigramTest, RefusesOtherTokenizersAndLargeVocabularies) {
  const Folder folder;
  const auto ids = make_id_tokenizer("ids", 3000, 2999);
  const Corpus bytes = Corpus::open(write_byte_corpus(folder.file("b.h5"), {"text"}));
  const Corpus large = Corpus::open(write_corpus(folder.file("l.h5"), *ids, {{1, 2, 2000}}));
  expect_error([&] { bigram_loss(bytes, large); }, {"different tokenizers"});
  expect_error([&] { bigram_loss(large, large); }, {"3000"});
}

}  // namespace

}  // namespace ringlet::test
