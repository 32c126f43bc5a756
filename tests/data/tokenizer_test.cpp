#include "data/tokenizer.h"

#include <gtest/gtest.h>

#include "kernels/check.h"
#include "tests/data/data_support.h"

namespace ringlet::test {

namespace {

std::vector<std::string> sample_lines() {
  const std::vector<std::string> words{"ring",   "attention ", "passes  ",
                                       "keys\t", "and",        " values\n"};
  std::vector<std::string> lines;
  for (size_t i = 0; i < 2000; ++i) {
    std::string line;
    for (size_t j = 0; j < 8; ++j) line += words[(i * 7 + j * j * 3 + i / 11) % words.size()] + " ";
    lines.push_back(line + std::to_string(i) + "\n");
  }
  return lines;
}

TEST(ByteTokenizerTest, EveryByteComesBackAndEndOfDocumentHasNoText) {
  const auto tokenizer = make_byte_tokenizer();
  const std::string text = random_bytes(5000, 1) + std::string(1, '\0') + "\xff\xfe";
  std::vector<int32_t> ids = tokenizer->encode(text);
  ASSERT_EQ(ids.size(), text.size());
  ids.push_back(int32_t(tokenizer->end_of_document()));
  EXPECT_EQ(tokenizer->decode(ids), text);
  EXPECT_EQ(tokenizer->text_bytes(ids), int64_t(text.size()));
  EXPECT_EQ(tokenizer->vocabulary(), 257);
  EXPECT_EQ(tokenizer->end_of_document(), 256);
}

TEST(IdTokenizerTest, NumbersComeBackAndOthersAreRefused) {
  const auto tokenizer = make_id_tokenizer("gpt2", 50257, 50256);
  EXPECT_EQ(tokenizer->encode("0 17\n50255 "), (std::vector<int32_t>{0, 17, 50255}));
  EXPECT_EQ(tokenizer->decode(std::vector<int32_t>{3, 50256, 14}), "3 14 ");
  EXPECT_FALSE(tokenizer->text_bytes(std::vector<int32_t>{3, 50256, 14}).has_value());
  EXPECT_THROW(tokenizer->encode("50257"), UsageError);
  EXPECT_THROW(tokenizer->encode("some words"), UsageError);
  EXPECT_THROW(make_id_tokenizer("ids", 10, 10), UsageError);
}

TEST(SentencePieceTest, TrainedModelGivesValidTextBackExactly) {
  const auto tokenizer = train_sentencepiece(sample_lines(), 320);
  EXPECT_EQ(tokenizer->vocabulary(), 321);
  EXPECT_EQ(tokenizer->end_of_document(), 320);
  for (const std::string text : {" two  blanks, a\ttab and\n\nlines ",
                                 "Größe 東京 🙂 never in the sample", "    indented\n"}) {
    const auto ids = tokenizer->encode(text);
    EXPECT_EQ(tokenizer->decode(ids), text);
    int64_t bytes = 0;
    for (const int32_t id : ids) {
      EXPECT_TRUE(id >= 0 && id < tokenizer->end_of_document()) << id;
      bytes += tokenizer->text_bytes(std::vector<int32_t>{id, 320, -1}).value();  // one by one
    }
    EXPECT_EQ(bytes, int64_t(text.size())) << text;
    EXPECT_EQ(tokenizer->text_bytes(ids), bytes);
  }
  const std::string seen = sample_lines()[5];
  EXPECT_LT(tokenizer->encode(seen).size(), seen.size() / 2);
}

TEST(SentencePieceTest, ModelBytesMakeTheSameTokenizer) {
  const auto tokenizer = train_sentencepiece(sample_lines(), 300);
  const auto again = make_sentencepiece_tokenizer(tokenizer->model());
  EXPECT_EQ(again->hash(), tokenizer->hash());
  EXPECT_EQ(again->encode("ring attention"), tokenizer->encode("ring attention"));
  EXPECT_NE(train_sentencepiece(sample_lines(), 301)->hash(), tokenizer->hash());
  EXPECT_NE(make_byte_tokenizer()->hash(), tokenizer->hash());
}

TEST(SentencePieceTest, RefusesWhatIsNoModelAndTooManyPieces) {
  expect_error([] { make_sentencepiece_tokenizer("no model at all"); }, {"SentencePiece"});
  expect_error([] { train_sentencepiece({"too little text\n"}, 5000); }, {"5000 pieces"});
}

TEST(TextCutterTest, PartsAreShortAndJoinToTheText) {
  for (const std::string unit : {"a line of text\n", "blanks only ", "no-place-to-cut", "東京"}) {
    std::string text, joined;
    while (text.size() < 100'000) text += unit;
    const TextCutter::Take take = [&](std::string_view part) {
      EXPECT_TRUE(!part.empty() && part.size() <= 16384) << part.size();
      joined += part;
    };
    TextCutter cutter(take);
    for (size_t at = 0; at < text.size(); at += 777) cutter.append(text.substr(at, 777));
    cutter.finish();
    EXPECT_EQ(joined, text) << unit;
  }
}

TEST(TextCutterTest, CutsBetweenLinesWordsOrCharacters) {
  const auto first_part = [](const std::string& unit) {
    std::string text, first;
    while (text.size() < 40'000) text += unit;
    TextCutter cutter([&](std::string_view part) {
      if (first.empty()) first = part;
    });
    cutter.append(text);
    return first;
  };
  EXPECT_TRUE(first_part("ab cd\n").ends_with("\n"));
  EXPECT_TRUE(first_part("ab cdefg ").ends_with("ab") || first_part("ab cdefg ").ends_with("g"));
  EXPECT_EQ(first_part("東").size() % 3, 0u);
  EXPECT_EQ(first_part("🙂").size() % 4, 0u);
}

}  // namespace

}  // namespace ringlet::test
