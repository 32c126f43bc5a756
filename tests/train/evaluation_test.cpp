#include "train/evaluation.h"

#include <gtest/gtest.h>

#include <cmath>

#include "tests/support/training_case.h"

namespace ringlet::test {
namespace {

/// Bits per byte of the first `windows` windows (0: all), for tokens whose loss is one nat each.
std::optional<double> bits_per_byte_of(const std::string& corpus_path, int64_t length,
                                       int64_t windows = 0) {
  const Corpus corpus = Corpus::open(corpus_path);
  const WindowReader reader(corpus, length);
  if (windows == 0) windows = reader.plan().window_count();
  const Piece whole{0, 1, 0, length};
  PositionBins bins(length);
  for (int64_t i = 0; i < windows; ++i) {
    const Batch batch = reader.read(i, {&whole, 1});
    add_losses(std::vector<float>(length, 1.0f), batch, {&whole, 1}, bins);
  }
  return bits_per_byte(corpus, reader, windows, bins);
}

// Windows of 4: abch, ello. Labels: b c END e, l l o END.
TEST(BitsPerByte, OfBytesCountsTheEndOfADocumentAsLossAndNotAsText) {
  TemporaryFolder folder;
  const std::string corpus = make_corpus_of(folder, "bytes", {"abc", "hello"});
  EXPECT_NEAR(bits_per_byte_of(corpus, 4).value(), 8 / (6 * std::log(2)), 1e-12);
  EXPECT_NEAR(bits_per_byte_of(corpus, 4, 1).value(), 4 / (3 * std::log(2)), 1e-12);
}

TEST(BitsPerByte, IsAbsentWithoutTextToPredict) {
  TemporaryFolder folder;
  EXPECT_FALSE(bits_per_byte_of(make_corpus_of(folder, "short", {"a", "b"}), 2).has_value());
}

// What the model has not seen falls back to bytes, and windows cut these characters wherever.
TEST(BitsPerByte, OfSubwordsCountsTheTextsBytes) {
  TemporaryFolder folder;
  std::string seen, rare;
  for (int i = 0; i < 3000; ++i) seen += i % 7 == 0 ? "ring " : i % 5 == 0 ? " keys\n" : "and values ";
  for (int i = 0; i < 40; ++i) rare += i % 3 == 0 ? "Größe " : i % 3 == 1 ? "東京" : "🙂";
  const std::vector<std::string> texts{"\n" + seen, "\n" + rare, "\nring 🙂", "\n"};
  const std::string path = make_corpus_of(folder, "subwords", texts, "sentencepiece", 320);
  const Corpus corpus = Corpus::open(path);
  int64_t bytes = 0;
  for (int64_t i = 0; i < corpus.document_count(); ++i) {
    std::vector<int32_t> first(1);
    corpus.read(corpus.document_offsets()[i], first);
    ASSERT_EQ(corpus.tokenizer()->decode(first), "\n");
    bytes += int64_t(texts[i].size()) - 1;
  }
  ASSERT_LT(corpus.token_count(), bytes);
  for (const int64_t length : {3, 7, 64, 333}) {
    EXPECT_NEAR(bits_per_byte_of(path, length).value(),
                double(corpus.token_count()) / (double(bytes) * std::log(2)), 1e-12)
        << length;
  }
}

}  // namespace
}  // namespace ringlet::test
