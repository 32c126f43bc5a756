#include "train/commands/prepare.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <thread>

#include "kernels/check.h"
#include "tests/data/data_support.h"

namespace ringlet::test {

namespace {

class PrepareTest : public testing::Test {
 protected:
  PrepareOptions options(std::vector<std::string> paths) const {
    PrepareOptions options;
    options.input.paths = std::move(paths);
    options.output = folder_.file("c.h5");
    return options;
  }
  const Folder folder_;
};

TEST_F(PrepareTest, TextComesBackFromTheCorpus) {
  const std::string first = random_bytes(100'000, 1), second = "second";
  const PrepareReport report = prepare(
      options({folder_.write("1", first), folder_.write("empty", ""), folder_.write("2", second)}));
  const Corpus corpus = Corpus::open(folder_.file("c.h5"));
  EXPECT_EQ(texts_of(corpus), (std::vector<std::string>{first, second}));
  EXPECT_EQ(report.input_bytes, 100'006);
  EXPECT_EQ(report.empty_documents, 1);
  ASSERT_EQ(report.files.size(), 1u);
  EXPECT_EQ(report.files[0].fingerprint, corpus.fingerprint());
  EXPECT_EQ(report.files[0].token_count, 100'006);
  EXPECT_EQ(report.files[0].document_count, 2);
}

TEST_F(PrepareTest, ReportsAsTextAndJson) {
  const PrepareReport report = prepare(options({folder_.write("name \xff", "some text")}));
  const auto json = nlohmann::json::parse(to_json(report));
  EXPECT_EQ(json["files"][0]["token_count"], 9);
  EXPECT_EQ(json["files"][0]["fingerprint"], report.files[0].fingerprint);
  EXPECT_EQ(json["vocabulary"], 257);
  EXPECT_NE(to_text(report).find("9 tokens in 1 document,"), std::string::npos);
}

TEST_F(PrepareTest, ValidationTakesWholeDocumentsFromTheEnd) {
  auto wanted = options({});
  std::vector<std::string> texts;
  for (int i = 0; i < 20; ++i) {
    texts.push_back("document number " + std::to_string(i + 10));
    wanted.input.paths.push_back(folder_.write("in" + std::to_string(i + 10), texts.back()));
  }
  wanted.validation_share = 0.1;
  wanted.split = "mine";
  prepare(wanted);
  const Corpus train = Corpus::open(folder_.file("c.h5"));
  const Corpus validation = Corpus::open(folder_.file("c.validation.h5"));
  EXPECT_EQ(texts_of(train), std::vector<std::string>(texts.begin(), texts.end() - 2));
  EXPECT_EQ(texts_of(validation), std::vector<std::string>(texts.end() - 2, texts.end()));
  EXPECT_EQ(train.split(), "mine");
  EXPECT_EQ(validation.split(), "validation");
  EXPECT_EQ(validation.document_name(1), wanted.input.paths[19]);
}

TEST_F(PrepareTest, ValidationCutsASingleDocument) {
  const std::string text = random_bytes(1000, 4);
  auto wanted = options({folder_.write("in", text)});
  wanted.validation_share = 0.1;
  prepare(wanted);
  EXPECT_EQ(texts_of(Corpus::open(folder_.file("c.h5")))[0], text.substr(0, 900));
  EXPECT_EQ(texts_of(Corpus::open(folder_.file("c.validation.h5")))[0], text.substr(900));
}

TEST_F(PrepareTest, ATaskIsGeneratedAndItsValidationIsNew) {
  auto wanted = options({});
  wanted.task.name = "induction";
  wanted.task.seq_len = 7;
  wanted.vocabulary = 5;
  wanted.samples = 180;  // of 4 * 3^4 different ones: many are drawn more than once
  wanted.validation_share = 0.2;
  const PrepareReport report = prepare(wanted);
  EXPECT_EQ(report.answer_tokens, 180);
  EXPECT_NE(to_text(report).find("180 tokens are answers"), std::string::npos) << to_text(report);
  const Corpus train = Corpus::open(folder_.file("c.h5")), validation = Corpus::open(folder_.file("c.validation.h5"));
  EXPECT_EQ(train.document_count(), 144);
  EXPECT_EQ(validation.document_count(), 36);
  EXPECT_EQ(validation.answers().size(), 36u);
  EXPECT_EQ(validation.answers()[1], 13);
  EXPECT_EQ(train.tokenizer_hash(), make_id_tokenizer("ids", 5, 0)->hash());
  const std::vector<std::string> trained = texts_of(train);
  for (const std::string& text : texts_of(validation)) {
    EXPECT_EQ(std::ranges::find(trained, text), trained.end()) << text;
  }
  const std::string bytes = read_file(folder_.file("c.validation.h5"));
  std::this_thread::sleep_for(std::chrono::milliseconds(1100));  // times in a file are of whole seconds
  prepare(wanted);
  EXPECT_TRUE(read_file(folder_.file("c.validation.h5")) == bytes) << "not the same again";
}

TEST_F(PrepareTest, TasksThatCannotBe) {
  auto wanted = options({});
  wanted.task.name = "induction";
  wanted.task.seq_len = 5;
  wanted.vocabulary = 4;
  wanted.samples = 1000;
  expect_error([&] { prepare(wanted); }, {"induction has hardly more than", "different samples of 5 tokens"});
  EXPECT_TRUE(folder_.entries().empty());
  wanted.samples = 1;
  wanted.validation_share = 0.5;
  expect_error([&] { prepare(wanted); }, {"1 samples are too few"});
  wanted.validation_share = 0;
  wanted.input.paths = {"text"};
  expect_error([&] { prepare(wanted); }, {"has no input"});
  wanted.input.paths = {};
  wanted.task.name = "";
  expect_error([&] { prepare(wanted); }, {"no input"});
  wanted.task.name = "recall";
  expect_error([&] { prepare(wanted); }, {"no task \"recall\""});
}

TEST_F(PrepareTest, TokenFilesKeepTheirIds) {
  const std::vector<uint16_t> tokens{50256, 5, 6, 50256, 7};
  const std::string bytes(reinterpret_cast<const char*>(tokens.data()), tokens.size() * 2);
  prepare(options({folder_.write("gpt2.bin", bytes)}));
  const Corpus gpt2 = Corpus::open(folder_.file("c.h5"));
  EXPECT_EQ(all_tokens(gpt2), (std::vector<int32_t>{5, 6, 7}));
  EXPECT_EQ(gpt2.document_count(), 2);
  EXPECT_EQ(gpt2.end_of_document(), 50256);
  EXPECT_EQ(gpt2.vocabulary(), 50257);
  auto wanted = options({folder_.write("characters.bin", bytes.substr(2, 4))});
  wanted.vocabulary = 65;
  prepare(wanted);
  const Corpus characters = Corpus::open(folder_.file("c.h5"));
  EXPECT_EQ(characters.vocabulary(), 66);
  EXPECT_EQ(characters.end_of_document(), 65);
  EXPECT_EQ(characters.tokenizer()->decode(all_tokens(characters)), "5 6 ");
}

TEST_F(PrepareTest, SentencePieceIsTrainedKeptAndUsedAgain) {
  std::string text;
  for (int i = 0; i < 3000; ++i) text += "line " + std::to_string(i * 37) + " of a long text\n";
  auto wanted = options({folder_.write("in", text)});
  wanted.tokenizer = "sentencepiece";
  wanted.vocabulary = 300;
  const PrepareReport report = prepare(wanted);
  const Corpus corpus = Corpus::open(folder_.file("c.h5"));
  EXPECT_EQ(texts_of(corpus)[0], text);
  EXPECT_EQ(corpus.vocabulary(), 301);
  EXPECT_LT(corpus.token_count(), std::ssize(text) / 2);
  EXPECT_EQ(report.model_path, folder_.file("c.model"));
  wanted.tokenizer = report.model_path;
  wanted.vocabulary = 0;
  wanted.output = folder_.file("again.h5");
  prepare(wanted);
  EXPECT_EQ(Corpus::open(folder_.file("again.h5")).fingerprint(), corpus.fingerprint());
}

TEST_F(PrepareTest, AVocabularyThatCannotBeTrainedSaysWhichWayOut) {
  auto wanted = options({folder_.write("in", "a short text")});
  wanted.tokenizer = "sentencepiece";
  wanted.vocabulary = 4;
  expect_error([&] { prepare(wanted); }, {"of 4 pieces", "smaller than"}, "larger --vocabulary");
  wanted.vocabulary = 5000;
  expect_error([&] { prepare(wanted); }, {"of 5000 pieces", "too high"}, "smaller --vocabulary");
}

TEST_F(PrepareTest, OptionsAndInputsThatCannotBe) {
  const std::string text = folder_.write("in", "text"), empty = folder_.write("none", "");
  expect_error([&] { prepare(options({empty})); }, {"empty"});
  EXPECT_THROW(prepare(options({})), UsageError);
  const auto expect_usage = [&](const std::function<void(PrepareOptions&)>& change) {
    auto wanted = options({text});
    change(wanted);
    EXPECT_THROW(prepare(wanted), UsageError);
  };
  expect_usage([](PrepareOptions& o) { o.output = "corpus"; });
  expect_usage([](PrepareOptions& o) { o.validation_share = 1; });
  expect_usage([](PrepareOptions& o) { o.validation_share = NAN; });
  expect_usage([](PrepareOptions& o) { o.tokenizer = "unheard of"; });
  expect_usage([](PrepareOptions& o) { o.split = ""; });
  expect_usage([](PrepareOptions& o) {
    o.tokenizer = "sentencepiece";
    o.input.paths = {"-"};
  });
  auto wanted = options({text});
  wanted.output = folder_.file("in/c.h5");
  expect_error([&] { prepare(wanted); }, {folder_.file("in")});
  EXPECT_EQ(folder_.entries(), (std::vector<std::string>{"in", "none"}));
}

TEST_F(PrepareTest, FoldersOfTheOutputAreMade) {
  auto wanted = options({folder_.write("in", "text")});
  wanted.output = folder_.file("new/folder/c.h5");
  prepare(wanted);
  EXPECT_EQ(Corpus::open(wanted.output).document_count(), 1);
}

// A corpus is binary: read as a text, it would be a document of its successor.
TEST_F(PrepareTest, WhatIsReadIsNotWritten) {
  folder_.write("texts/in", "text");
  auto wanted = options({folder_.file("texts/in")});
  wanted.validation_share = 0.5;
  for (const char* output : {"texts/c.h5", "c.h5"}) {
    wanted.output = folder_.file(output);
    wanted.input.paths = {folder_.file("texts/in")};
    prepare(wanted);
    const std::string content = Corpus::open(wanted.output).fingerprint();
    const std::string validation = folder_.file(std::string(output).substr(0, std::string(output).size() - 3)) + ".validation.h5";
    for (const std::string& input : {wanted.output, validation}) {
      wanted.input.paths = {folder_.file("texts/in"), input};
      expect_error([&] { prepare(wanted); }, {"would be read and written"});
    }
    EXPECT_EQ(Corpus::open(wanted.output).fingerprint(), content);
  }
  wanted.output = folder_.file("texts/c.h5");
  wanted.input.paths = {folder_.file("texts")};
  EXPECT_EQ(prepare(wanted).left_out,
            (std::vector<std::string>{folder_.file("texts/c.h5"), folder_.file("texts/c.validation.h5")}));
  wanted.input.format = InputFormat::text;
  expect_error([&] { prepare(wanted); }, {"would be read and written"});
}

TEST_F(PrepareTest, AVocabularyThatNothingHeedsIsRefused) {
  auto wanted = options({folder_.write("in", "some text")});
  wanted.vocabulary = 300;
  EXPECT_THROW(prepare(wanted), UsageError);
  EXPECT_EQ(folder_.entries().size(), 1u);
}

TEST_F(PrepareTest, AnOldValidationCorpusIsNamed) {
  auto wanted = options({folder_.write("in", "some text")});
  wanted.validation_share = 0.5;
  EXPECT_EQ(prepare(wanted).old_validation, "");
  wanted.validation_share = 0;
  const PrepareReport report = prepare(wanted);
  EXPECT_EQ(report.old_validation, folder_.file("c.validation.h5"));
  EXPECT_NE(to_text(report).find("c.validation.h5 is of an earlier corpus"), std::string::npos) << to_text(report);
}

// A file may have no more than so many bytes, as when the disk is full; the limits reach from the
// first write to the last one.
TEST_F(PrepareTest, AFullDiskIsAnErrorThatLeavesEverythingAsItWas) {
  const std::string input = folder_.write("in", random_bytes(300'000, 5));
  const std::string old = write_byte_corpus(folder_.file("c.h5"), {"the old corpus"});
  const std::string old_bytes = read_file(old);
  auto wanted = options({input});
  wanted.output = folder_.file("size.h5");
  const auto size = rlim_t(prepare(wanted).files[0].file_bytes);
  std::filesystem::remove(wanted.output);
  wanted.output = old;
  std::vector<rlim_t> limits{0, 1000, 300'000, 599'999};  // the spool has 600,000
  for (rlim_t limit = 600'000; limit < size; limit += 400) limits.push_back(limit);
  limits.push_back(size - 1);
  for (const rlim_t limit : limits) {
    const int status = run_in_child([&] {
      signal(SIGXFSZ, SIG_IGN);
      const rlimit bytes{limit, limit};
      setrlimit(RLIMIT_FSIZE, &bytes);
      try {
        prepare(wanted);
      } catch (const Error& error) {
        return error.advice.find("disk") != std::string::npos ? 0 : 2;
      }
      return 1;
    });
    EXPECT_EQ(status, 0) << "limit " << limit;
    EXPECT_TRUE(read_file(old) == old_bytes) << "limit " << limit;
    EXPECT_EQ(folder_.entries(), (std::vector<std::string>{"c.h5", "in"})) << "limit " << limit;
  }
}

TEST_F(PrepareTest, MemoryDoesNotGrowWithTheDocument) {
  if (kSanitized) GTEST_SKIP() << "a sanitizer's own memory would be counted";
  {
    std::ofstream file(folder_.file("in"), std::ios::binary);
    const std::string part = random_bytes(1 << 20, 6);
    for (int i = 0; i < 64; ++i) file << part;
  }
  const auto resident_kib = [](const char* line_start) {
    std::ifstream status("/proc/self/status");
    std::string line;
    while (std::getline(status, line) && !line.starts_with(line_start)) {
    }
    return std::stoll(line.substr(line.find(':') + 1));
  };
  EXPECT_EQ(run_in_child([&] {
              const auto before = resident_kib("VmRSS");
              prepare(options({folder_.file("in")}));
              const auto grown = resident_kib("VmHWM") - before;
              return grown < 32 * 1024 ? 0 : 1;
            }),
            0);
  EXPECT_EQ(Corpus::open(folder_.file("c.h5")).token_count(), 64 << 20);
}

TEST_F(PrepareTest, ReportsProgress) {
  const std::string input = folder_.write("in", std::string(9 << 20, 'p'));
  std::vector<int64_t> done;
  prepare(options({input}), [&](int64_t done_bytes, int64_t total_bytes) {
    done.push_back(done_bytes);
    EXPECT_EQ(total_bytes, 9 << 20);
  });
  EXPECT_EQ(done, (std::vector<int64_t>{4 << 20, 8 << 20}));
}

}  // namespace

}  // namespace ringlet::test
