#include "data/corpus.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <numeric>
#include <thread>

#include "kernels/random.h"
#include "tests/data/data_support.h"
#include "tests/data/hdf5_maker.h"

namespace ringlet::test {

namespace {

TEST(CorpusTest, GivesBackWhatWasWritten) {
  const Folder folder;
  const std::vector<std::string> documents{"first", random_bytes(5000, 2), "x"};
  const Corpus corpus = Corpus::open(write_byte_corpus(folder.file("some.name.h5"), documents));
  EXPECT_EQ(texts_of(corpus), documents);
  EXPECT_EQ(corpus.name(), "some.name");
  EXPECT_EQ(corpus.token_count(), 5006);
  EXPECT_EQ(corpus.document_count(), 3);
  EXPECT_EQ(corpus.vocabulary(), 257);
  EXPECT_EQ(corpus.end_of_document(), 256);
  EXPECT_EQ(corpus.document_name(2), "document 2");
  EXPECT_EQ(corpus.split(), "train");
  EXPECT_EQ(corpus.tokenizer_name(), "byte");
  EXPECT_EQ(corpus.tokenizer_hash(), make_byte_tokenizer()->hash());
  EXPECT_EQ(folder.entries(), std::vector<std::string>{"some.name.h5"});
  corpus.verify();
}

TEST(CorpusTest, WideTokensAndManyBlocksComeBack) {
  const Folder folder;
  const auto tokenizer = make_id_tokenizer("ids", 200'000, 199'999);
  std::vector<int32_t> document(size_t(2 * kBlockTokens + 17));
  for (size_t i = 0; i < document.size(); ++i) document[i] = int32_t(mix_bits(i) % 199'999);
  const Corpus corpus = Corpus::open(write_corpus(folder.file("c.h5"), *tokenizer, {document}));
  EXPECT_TRUE(all_tokens(corpus) == document);
  corpus.verify();
}

TEST(CorpusTest, TheFingerprintIsThatOfTheContent) {
  const Folder folder;
  const auto fingerprint = [&](const char* name, const std::vector<std::string>& documents) {
    return Corpus::open(write_byte_corpus(folder.file(name), documents)).fingerprint();
  };
  const std::string one = fingerprint("a.h5", {"abc", "def"});
  EXPECT_EQ(one.size(), 32u);
  EXPECT_EQ(one, fingerprint("b.h5", {"abc", "def"}));
  EXPECT_NE(one, fingerprint("c.h5", {"abcd", "ef"}));
  EXPECT_NE(one, fingerprint("d.h5", {"abc", "deg"}));
}

TEST(CorpusTest, AnswersComeBackAndBelongToTheContent) {
  const Folder folder;
  const std::vector<int64_t> lengths{70, 30, 10};
  const std::vector<DocumentAnswers> answers{{{5, 5}, {6, 5}, {7, 5}, {8, 4}, {40, 3}}, {}, {{1, 1}, {3, 1}}};
  const std::string path = write_counting_corpus(folder.file("c.h5"), lengths, answers);
  const Corpus corpus = Corpus::open(path);
  corpus.verify();
  EXPECT_EQ(std::vector(corpus.answers().begin(), corpus.answers().end()),
            (std::vector<int64_t>{5, 6, 7, 8, 40, 101, 103}));
  EXPECT_EQ(std::vector(corpus.answer_distances().begin(), corpus.answer_distances().end()),
            (std::vector<int64_t>{5, 5, 5, 4, 3, 1, 1}));
  std::vector<int64_t> ends;
  for (int64_t first = 0; first < 7; first = ends.back()) ends.push_back(corpus.answer_end(first));
  EXPECT_EQ(ends, (std::vector<int64_t>{3, 4, 5, 6, 7}));  // another distance is another answer
  const Corpus without = Corpus::open(write_counting_corpus(folder.file("w.h5"), lengths));
  EXPECT_TRUE(without.answers().empty());
  EXPECT_NE(corpus.fingerprint(), without.fingerprint());
  auto moved = answers;
  moved[2][1].distance = 2;
  EXPECT_NE(corpus.fingerprint(),
            Corpus::open(write_counting_corpus(folder.file("m.h5"), lengths, moved)).fingerprint());
}

TEST(CorpusTest, CarriesItsSentencePieceModel) {
  const Folder folder;
  std::vector<std::string> lines;
  for (int i = 0; i < 500; ++i)
    lines.push_back("a line of text, number " + std::to_string(i) + "\n");
  const auto tokenizer = train_sentencepiece(lines, 300);
  const Corpus corpus = Corpus::open(
      write_corpus(folder.file("c.h5"), *tokenizer, {tokenizer->encode("a line of text\n")}));
  EXPECT_EQ(texts_of(corpus), std::vector<std::string>{"a line of text\n"});
  EXPECT_EQ(corpus.tokenizer()->hash(), tokenizer->hash());
  EXPECT_EQ(corpus.vocabulary(), 301);
}

TEST(CorpusTest, ManyThreadsReadAtOnce) {
  const Folder folder;
  const Corpus corpus = Corpus::open(write_counting_corpus(folder.file("c.h5"), {50'000}));
  std::vector<std::thread> threads;
  for (int64_t t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      std::vector<int32_t> tokens(1000);
      for (int64_t first = t; first + 1000 < 50'000; first += 997) {
        corpus.read(first, tokens);
        for (int64_t i = 0; i < 1000; ++i) ASSERT_EQ(tokens[size_t(i)], (first + i) % 251);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

TEST(CorpusTest, ManyThreadsOpenAtOnce) {
  const Folder folder;
  const std::string path = write_counting_corpus(folder.file("c.h5"), {300, 200});
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 5; ++i) EXPECT_EQ(Corpus::open(path).document_count(), 2);
    });
  }
  for (std::thread& thread : threads) thread.join();
}

std::vector<int64_t> counting(int64_t count, int64_t below) {
  std::vector<int64_t> values(size_t(count), 0);
  for (int64_t i = 0; i < count; ++i) values[size_t(i)] = i * 7 % below;
  return values;
}

// Whatever h5py writes by default or on request: number types, chunks, filters.
TEST(ForeignCorpusTest, EveryStorageGivesTheSameTokens) {
  const Folder folder;
  const std::vector<int64_t> values = counting(10'000, 256);
  const std::vector<Storage> storages{
      {H5T_STD_U16LE},      {H5T_STD_U32LE},          {H5T_STD_I64LE},
      {H5T_STD_I32BE},      {H5T_STD_U8LE},           {H5T_STD_U16BE},
      {H5T_STD_U16LE, 700}, {H5T_STD_I32LE, 1000, 4}, {H5T_STD_U16LE, 333, 1, true, true}};
  for (const auto superblock :
       {Hdf5Maker::Superblock::old, Hdf5Maker::Superblock::with_checksums}) {
    for (size_t i = 0; i < storages.size(); ++i) {
      const std::string path = folder.file("foreign" + std::to_string(i) + ".h5");
      {
        const Hdf5Maker maker(path, superblock);
        maker.add("tokens", values, storages[i]);
        maker.add("document_offsets", {0, 10, 4000, 10'000}, {H5T_STD_I64LE, i % 2 * 2});
      }
      const Corpus corpus = Corpus::open(path);
      const auto tokens = all_tokens(corpus);
      EXPECT_TRUE(std::equal(tokens.begin(), tokens.end(), values.begin(), values.end())) << i;
      EXPECT_EQ(corpus.document_count(), 3);
      EXPECT_EQ(corpus.vocabulary(), 257);
      EXPECT_EQ(corpus.tokenizer_name(), "byte");
      EXPECT_EQ(corpus.fingerprint().size(), 32u);
      corpus.verify();
    }
  }
}

TEST(ForeignCorpusTest, VocabularyAndEndOfDocumentAreAttributes) {
  const Folder folder;
  const auto make = [&](int64_t vocabulary, int64_t end_of_document) {
    const Hdf5Maker maker(folder.file("f.h5"));
    maker.add("tokens", counting(5000, 1000));
    if (vocabulary >= 0) maker.add_integer("vocabulary", vocabulary);
    if (end_of_document >= 0) maker.add_integer("end_of_document", end_of_document);
  };
  make(1000, -1);
  EXPECT_EQ(Corpus::open(folder.file("f.h5")).vocabulary(), 1001);
  EXPECT_EQ(Corpus::open(folder.file("f.h5")).end_of_document(), 1000);
  EXPECT_EQ(Corpus::open(folder.file("f.h5")).document_count(), 1);
  EXPECT_EQ(Corpus::open(folder.file("f.h5")).tokenizer()->decode(std::vector<int32_t>{5}), "5 ");
  make(1200, 3);
  EXPECT_EQ(Corpus::open(folder.file("f.h5")).vocabulary(), 1200);
  EXPECT_EQ(Corpus::open(folder.file("f.h5")).end_of_document(), 3);
  make(900, -1);
  expect_error([&] { all_tokens(Corpus::open(folder.file("f.h5"))); },
               {"f.h5", "token 129 is 903", "901"});  // 901: end of document is one more
  make(-1, -1);
  expect_error([&] { Corpus::open(folder.file("f.h5")).verify(); }, {"f.h5", "is 259", "257"});
  make(1000, 1000);
  expect_error([&] { Corpus::open(folder.file("f.h5")); }, {"f.h5", "vocabulary 1000"});
}

}  // namespace

}  // namespace ringlet::test
