#include "data/batch.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "kernels/check.h"
#include "model/sequence_layout.h"
#include "tests/data/data_support.h"

namespace ringlet::test {

namespace {

/// A whole window from the corpus's tokens and offsets alone.
Batch window_plainly(const Corpus& corpus, const WindowPlan& plan, int64_t index) {
  const std::vector<int32_t> all = all_tokens(corpus);
  const auto offsets = corpus.document_offsets();
  Batch batch{plan.window(index), {}, {}};
  for (int64_t position = 0; position < plan.window_tokens(); ++position) {
    const int64_t at = batch.window.first_token + position;
    const bool padding = position >= batch.window.token_count;
    const bool last = std::find(offsets.begin(), offsets.end(), at + 1) != offsets.end();
    batch.tokens.push_back(padding ? 0 : all[size_t(at)]);
    const auto answers = corpus.answers();
    const bool counts = answers.empty() || std::ranges::find(answers, at + 1) != answers.end();
    batch.labels.push_back(padding || !counts ? -1 : last ? 256 : all[size_t(at + 1)]);
  }
  return batch;
}

void expect_every_layouts_rows(const Corpus& corpus) {
  for (const int64_t T : {int64_t{1}, int64_t{97}, int64_t{128}, corpus.token_count()}) {
    const WindowReader reader(corpus, T);
    for (int64_t index = 0; index < reader.plan().window_count(); ++index) {
      const Batch whole = window_plainly(corpus, reader.plan(), index);
      ASSERT_EQ(reader.label_count(index),
                std::ranges::count_if(whole.labels, [](int32_t label) { return label >= 0; }));
      for (const Layout layout : {Layout::contiguous, Layout::zigzag, Layout::striped}) {
        for (const int ranks : {1, 3, 8}) {
          const SequenceLayout rows = make_layout(layout, T, ranks);
          for (const auto& pieces : rows.ranks) {
            const Batch batch = reader.read(index, pieces);
            std::vector<int32_t> tokens, labels;
            for (const Piece& piece : pieces) {
              for (int64_t i = 0; i < piece.row_count; ++i) {
                tokens.push_back(whole.tokens[size_t(piece.position(i))]);
                labels.push_back(whole.labels[size_t(piece.position(i))]);
              }
            }
            ASSERT_EQ(batch.tokens, tokens) << T << " " << index << " " << name_of(layout) << ranks;
            ASSERT_EQ(batch.labels, labels) << T << " " << index << " " << name_of(layout) << ranks;
            ASSERT_EQ(batch.window.document_starts, whole.window.document_starts);
          }
        }
      }
    }
  }
}

const std::vector<int64_t> kDocumentLengths{300, 5, 1, 1, 90, 700, 64, 127, 2, 333, 20};

TEST(BatchTest, EveryLayoutGetsItsRowsOfTheWholeWindow) {
  const Folder folder;
  expect_every_layouts_rows(Corpus::open(write_counting_corpus(folder.file("c.h5"), kDocumentLengths)));
}

// Answers at the ends of windows of 97 and 128 tokens, of documents, and windows without any.
TEST(BatchTest, OfAnswersOnlyTheirLabelsCount) {
  const Folder folder;
  std::vector<DocumentAnswers> answers(kDocumentLengths.size());
  answers[0] = {{1, 1}, {96, 3}, {97, 3}, {98, 3}, {127, 1}, {128, 1}, {299, 1}};
  answers[1] = {{1, 1}, {4, 2}};
  answers[8] = {{1, 1}};
  answers[10] = {{19, 19}};
  expect_every_layouts_rows(Corpus::open(write_counting_corpus(folder.file("c.h5"), kDocumentLengths, answers)));
}

TEST(BatchTest, LabelsGoOnIntoTheNextWindowAndStopAtDocuments) {
  const Folder folder;
  const Corpus corpus = Corpus::open(write_byte_corpus(folder.file("c.h5"), {"abcdefgh", "xy"}));
  const WindowReader reader(corpus, 4);
  const std::vector<Piece> all{{0, 1, 0, 4}};
  EXPECT_EQ(reader.read(0, all).labels, (std::vector<int32_t>{'b', 'c', 'd', 'e'}));
  EXPECT_EQ(reader.read(1, all).labels, (std::vector<int32_t>{'f', 'g', 'h', 256}));
  const Batch last = reader.read(2, all);
  EXPECT_EQ(last.tokens, (std::vector<int32_t>{'x', 'y', 0, 0}));
  EXPECT_EQ(last.labels, (std::vector<int32_t>{'y', 256, -1, -1}));
  EXPECT_EQ(last.window.document_starts, (std::vector<int64_t>{0, 2}));
}

TEST(BatchTest, LongPiecesAreReadBlockByBlock) {
  const Folder folder;
  const int64_t T = 300'000;
  const Corpus corpus = Corpus::open(write_counting_corpus(folder.file("c.h5"), {T}));
  const WindowReader reader(corpus, T);
  for (const int64_t stride : {1, 2, 7, 100'000}) {
    const Piece piece{5, stride, 0, (T - 6) / stride + 1};
    const Batch batch = reader.read(0, std::span(&piece, 1));
    ASSERT_EQ(std::ssize(batch.tokens), piece.row_count);
    for (int64_t i = 0; i < piece.row_count; ++i) {
      const int64_t position = piece.position(i);
      ASSERT_EQ(batch.tokens[size_t(i)], position % 251);
      ASSERT_EQ(batch.labels[size_t(i)], position + 1 == T ? 256 : (position + 1) % 251);
    }
  }
}

TEST(BatchTest, RefusesPiecesOutsideTheWindowAndShortCorpora) {
  const Folder folder;
  const Corpus corpus = Corpus::open(write_byte_corpus(folder.file("c.h5"), {"abcdefgh"}));
  const WindowReader reader(corpus, 4);
  const Piece outside{2, 1, 0, 3};
  EXPECT_THROW(reader.read(0, std::span(&outside, 1)), Error);
  EXPECT_THROW(reader.read(2, {}), Error);
  expect_error([&] { WindowReader(corpus, 9); }, {"c.h5", "8 tokens"});
}

}  // namespace

}  // namespace ringlet::test
