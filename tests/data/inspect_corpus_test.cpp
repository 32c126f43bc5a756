#include "train/commands/inspect_corpus.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "tests/data/data_support.h"

namespace ringlet::test {

namespace {

TEST(InspectCorpusTest, CountsLengthsAndContextsAsByHand) {
  const Folder folder;
  const std::vector<int64_t> lengths{1, 3, 3, 4, 1025, 20'000};
  const CorpusReport report =
      inspect_corpus(write_counting_corpus(folder.file("c.h5"), lengths), CorpusCheck::everything);
  const double total = 21'036;
  EXPECT_EQ(report.token_count, total);
  EXPECT_EQ(report.longest_tokens, 20'000);
  EXPECT_EQ(report.median_tokens, 4);
  ASSERT_EQ(report.lengths.size(), 15u);  // 1, 2, 4, ..., 16384
  int64_t documents = 0, tokens = 0;
  for (const auto& bin : report.lengths) {
    for (const int64_t length : lengths) {
      const bool inside = length >= bin.from_tokens && length < 2 * bin.from_tokens;
      documents += inside;
      tokens += inside ? length : 0;
    }
    EXPECT_EQ(bin.document_count, documents) << bin.from_tokens;
    EXPECT_EQ(bin.token_count, tokens) << bin.from_tokens;
    documents = tokens = 0;
  }
  ASSERT_EQ(report.contexts.size(), 3u);
  EXPECT_DOUBLE_EQ(report.contexts[0].share, (1 + 20'000 - 1024) / total);
  EXPECT_DOUBLE_EQ(report.contexts[1].share, (20'000 - 4096) / total);
  EXPECT_DOUBLE_EQ(report.contexts[2].share, (20'000 - 16384) / total);
  ASSERT_EQ(report.longest.size(), 5u);
  EXPECT_EQ(report.longest[0].name, "document 5");
  EXPECT_EQ(report.longest[4].token_count, 3);
}

TEST(InspectCorpusTest, PrintsTextAndJson) {
  const Folder folder;
  const CorpusReport report =
      inspect_corpus(write_counting_corpus(folder.file("c.h5"), {5000}), CorpusCheck::structure);
  const auto json = nlohmann::json::parse(to_json(report));
  EXPECT_EQ(json["contexts"].size(), 2u);
  EXPECT_EQ(json["lengths"][0]["from_tokens"], 4096);
  EXPECT_EQ(json["fingerprint"], report.fingerprint);
  const std::string text = to_text(report);
  EXPECT_NE(text.find("T =    4k   18.1%"), std::string::npos) << text;
  EXPECT_NE(text.find("5000 tokens in 1 document,"), std::string::npos) << text;
}

TEST(InspectCorpusTest, CountsAnswersByTheirDistance) {
  const Folder folder;
  const CorpusReport report = inspect_corpus(
      write_counting_corpus(folder.file("c.h5"), {100, 100},
                            {{{10, 3}, {11, 3}, {12, 2}, {50, 16}}, {{5, 4}, {6, 5}}}),
      CorpusCheck::structure);
  EXPECT_EQ(report.answer_tokens, 6);
  EXPECT_EQ(report.answer_count, 5);
  std::vector<std::pair<int64_t, int64_t>> bins;
  for (const auto& bin : report.distances) bins.emplace_back(bin.from_tokens, bin.answer_count);
  EXPECT_EQ(bins, (std::vector<std::pair<int64_t, int64_t>>{{2, 2}, {4, 2}, {8, 0}, {16, 1}}));
  EXPECT_NE(to_text(report).find("5 answers, 6 tokens"), std::string::npos) << to_text(report);
  const auto json = nlohmann::json::parse(to_json(report));
  EXPECT_EQ(json["answer_count"], 5);
  EXPECT_EQ(json["answer_distances"][3]["from_tokens"], 16);
}

TEST(InspectCorpusTest, EverythingFindsAFlippedBitThatTheStructureHides) {
  const Folder folder;
  const std::string path = write_counting_corpus(folder.file("c.h5"), {5000});
  // the tokens begin at a page of their own: 0, 1, 2 as u16
  const std::string bytes = read_file(path);
  const size_t place = bytes.find(std::string("\0\0\1\0\2\0\3\0", 8));
  ASSERT_NE(place, std::string::npos);
  const File file = File::open_to_write(path);
  const std::byte changed{9};
  file.write(int64_t(place + 4), std::span(&changed, 1));
  EXPECT_EQ(inspect_corpus(path, CorpusCheck::structure).token_count, 5000);
  expect_error([&] { inspect_corpus(path, CorpusCheck::everything); },
               {"c.h5", "tokens 0 to 4999 are damaged"});
}

}  // namespace

}  // namespace ringlet::test
