#include "data/documents.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>

#include "kernels/check.h"
#include "tests/data/data_support.h"

namespace ringlet::test {

namespace {

using Documents = std::vector<std::pair<std::string, std::string>>;  // name, text

Documents read_all(const DocumentInput& input) {
  Documents documents;
  std::string text;
  const TextSink sink{[&](std::string_view piece) { text += piece; },
                      [&](std::string_view name) {
                        documents.emplace_back(name, text);
                        text.clear();
                      }};
  read_text_files(list_source_files(input).files, input.json_field, sink);
  EXPECT_EQ(text, "") << "text without an end";
  return documents;
}

std::vector<std::vector<int32_t>> read_all_tokens(const std::string& path, int64_t vocabulary,
                                                  int64_t separator) {
  std::vector<std::vector<int32_t>> documents(1);
  const TokenSink sink{[&](std::span<const int32_t> piece) {
                         documents.back().insert(documents.back().end(), piece.begin(),
                                                 piece.end());
                       },
                       [&](std::string_view) { documents.emplace_back(); }};
  read_token_files(list_source_files({.paths = {path}}).files, vocabulary, separator, sink);
  EXPECT_TRUE(documents.back().empty()) << "tokens without an end";
  documents.pop_back();
  return documents;
}

std::string bytes_of(const std::vector<uint16_t>& tokens) {
  return {reinterpret_cast<const char*>(tokens.data()), tokens.size() * 2};
}

std::string llmc_header(int32_t version, int32_t count) {
  std::vector<int32_t> header(256, 0);
  header[0] = 20240520;
  header[1] = version;
  header[2] = count;
  return {reinterpret_cast<const char*>(header.data()), 1024};
}

class DocumentsTest : public testing::Test {
 protected:
  const Folder folder_;
};

TEST_F(DocumentsTest, ATextFileIsADocumentByteForByte) {
  const std::string long_text = random_bytes((2 << 20) + 77, 3);
  const std::string first = folder_.write("b.txt", long_text), second = folder_.write("a", "");
  EXPECT_EQ(read_all({.paths = {first, second}}), (Documents{{first, long_text}, {second, ""}}));
}

TEST_F(DocumentsTest, AFolderIsReadInSortedOrderWithoutHiddenEntries) {
  const std::string z = folder_.write("in/z.txt", "last"), b = folder_.write("in/b/c.json", "{}");
  const std::string a = folder_.write("in/a.md", "first");
  folder_.write("in/.git/config", "hidden");
  folder_.write("in/.hidden", "hidden");
  std::filesystem::create_symlink("nowhere", folder_.file("in/broken"));
  EXPECT_EQ(read_all({.paths = {folder_.file("in")}}),
            (Documents{{a, "first"}, {b, "{}"}, {z, "last"}}));
}

TEST_F(DocumentsTest, OfAFolderOnlyTextIsRead) {
  const std::string a = folder_.write("in/a.txt", "first"), b = folder_.write("in/b.jsonl", "{\"text\": \"line\"}\n");
  const std::string c = folder_.write("in/c.bin", "letters");
  const std::string d = folder_.write("in/d.h5", std::string(8000, 'x') + '\0');
  const std::string e = folder_.write("in/e.txt", std::string(9000, 'y') + '\0');
  const DocumentInput folder{.paths = {folder_.file("in")}};
  EXPECT_EQ(list_source_files(folder).left_out, std::vector<std::string>{d});
  EXPECT_EQ(read_all(folder), (Documents{{a, "first"}, {b + ":1", "line"}, {c, "letters"}, {e, read_file(e)}}));
  EXPECT_EQ(read_all({.paths = {folder_.file("in")}, .format = InputFormat::text}).size(), 5u);
  EXPECT_EQ(read_all({.paths = {d}}), (Documents{{d, read_file(d)}})) << "named itself";
  folder_.write("blobs/d.h5", std::string(1, '\0'));
  expect_error([&] { list_source_files({.paths = {folder_.file("blobs")}}); }, {"blobs holds no text"});
}

TEST_F(DocumentsTest, AFolderThatIsOneDocumentIsTextUnlessSaidOtherwise) {
  const std::string lines = folder_.write("in/a.jsonl", "{\"text\": \"line\"}\n");
  DocumentInput input{.paths = {folder_.file("in")}, .unit = DocumentUnit::directory};
  EXPECT_EQ(read_all(input), (Documents{{folder_.file("in"), "{\"text\": \"line\"}\n"}}));
  input.format = InputFormat::jsonl;
  EXPECT_EQ(read_all(input), (Documents{{lines + ":1", "line"}}));
  folder_.write("all/a.bin", "letters");
  EXPECT_EQ(read_all({.paths = {folder_.file("all")}, .unit = DocumentUnit::directory}),
            (Documents{{folder_.file("all"), "letters"}}));
}

TEST_F(DocumentsTest, AFolderOfTokenFilesIsTokens) {
  folder_.write("in/1.bin", bytes_of({1, 2}));
  folder_.write("in/2.bin", bytes_of({3}));
  EXPECT_EQ(read_all_tokens(folder_.file("in"), 5, -1), (std::vector<std::vector<int32_t>>{{1, 2}, {3}}));
}

TEST_F(DocumentsTest, AFolderCanBeOneDocument) {
  folder_.write("one/b.txt", "second ");
  folder_.write("one/a/x.txt", "first ");
  folder_.write("two/c.txt", "third");
  const std::string alone = folder_.write("alone.txt", "fourth");
  EXPECT_EQ(read_all({.paths = {folder_.file("one"), folder_.file("two"), alone},
                      .unit = DocumentUnit::directory}),
            (Documents{{folder_.file("one"), "first second "},
                       {folder_.file("two"), "third"},
                       {alone, "fourth"}}));
}

TEST_F(DocumentsTest, JsonLinesGiveTheirField) {
  const std::string path = folder_.write(
      "d.jsonl", "{\"id\": 1, \"text\": \"a\\nb \\u00e9\"}\r\n\n  \n{\"text\":\"last\"}");
  EXPECT_EQ(read_all({.paths = {path}}),
            (Documents{{path + ":1", "a\nb é"}, {path + ":4", "last"}}));
  const std::string other = folder_.write("other.jsonl", "{\"body\": \"x\", \"text\": 3}\n");
  EXPECT_EQ(read_all({.paths = {other}, .json_field = "body"}), (Documents{{other + ":1", "x"}}));
}

TEST_F(DocumentsTest, LongJsonLinesAreReadAcrossBuffers) {
  const std::string text(3 << 20, 'j');
  const std::string line = "{\"text\": \"" + text + "\"}\n";
  const Documents documents = read_all({.paths = {folder_.write("d.jsonl", line + line)}});
  ASSERT_EQ(documents.size(), 2u);
  EXPECT_TRUE(documents[0].second == text && documents[1].second == text);
}

TEST_F(DocumentsTest, BadJsonLinesAreNamedByTheirNumber) {
  const auto expect_bad = [&](const std::string& line, const std::string& words) {
    const std::string path = folder_.write("d.jsonl", "{\"text\": \"fine\"}\n\n" + line + "\n");
    expect_error([&] { read_all({.paths = {path}}); }, {"d.jsonl, line 3", words});
  };
  expect_bad("{\"text\": \"unfinished", "not a JSON object");
  expect_bad("[1, 2]", "not a JSON object");
  expect_bad("{\"text\": 5}", "no text field \"text\"");
  expect_bad("{\"txt\": \"a\"}", "no text field \"text\"");
  expect_bad("{\"text\": \"\xff\"}", "not a JSON object");
}

TEST_F(DocumentsTest, StandardInputIsRead) {
  const std::string path = folder_.write("in.txt", "from the pipe");
  EXPECT_EQ(run_in_child([&] {
              dup2(open(path.c_str(), O_RDONLY), STDIN_FILENO);
              return read_all({.paths = {"-"}}) == Documents{{"-", "from the pipe"}} ? 0 : 1;
            }),
            0);
}

TEST_F(DocumentsTest, TokenFilesOfNanoGptAndLlmC) {
  const std::vector<uint16_t> tokens{50256, 1, 2, 3, 50256, 50256, 4};
  const std::vector<std::vector<int32_t>> documents{{1, 2, 3}, {4}};
  const std::string nano = folder_.write("nano.bin", bytes_of(tokens));
  EXPECT_EQ(read_all_tokens(nano, 50257, 50256), documents);
  const std::string llmc = folder_.write("llmc.bin", llmc_header(1, 7) + bytes_of(tokens));
  EXPECT_EQ(read_all_tokens(llmc, 50257, 50256), documents);
  const std::string plain = folder_.write("plain.bin", bytes_of({64, 0, 7}));
  EXPECT_EQ(read_all_tokens(plain, 65, -1), (std::vector<std::vector<int32_t>>{{64, 0, 7}}));
}

TEST_F(DocumentsTest, LongTokenFilesComeInOrder) {
  std::vector<uint16_t> tokens(3'000'000);
  for (size_t i = 0; i < tokens.size(); ++i) tokens[i] = uint16_t(i % 50'000);
  const auto documents = read_all_tokens(folder_.write("long.bin", bytes_of(tokens)), 50257, 50256);
  ASSERT_EQ(documents.size(), 1u);
  EXPECT_TRUE(std::equal(tokens.begin(), tokens.end(), documents[0].begin(), documents[0].end()));
}

TEST_F(DocumentsTest, BadTokenFilesAreErrors) {
  const auto expect_bad = [&](const std::string& content, const std::string& words) {
    const std::string path = folder_.write("t.bin", content);
    expect_error([&] { read_all_tokens(path, 100, -1); }, {"t.bin", words});
  };
  expect_bad("abc", "odd number");
  expect_bad(bytes_of({99, 100}), "token 100");
  expect_bad(llmc_header(2, 1) + bytes_of({1}), "version 2");
  expect_bad(llmc_header(1, 5) + bytes_of({1}), "claims 5 tokens");
  expect_bad(llmc_header(1, -1), "claims -1 tokens");
}

TEST_F(DocumentsTest, InputsThatCannotBeUsed) {
  const std::string text = folder_.write("a.txt", "a"), tokens = folder_.write("b.bin", "ab");
  std::filesystem::create_directory(folder_.file("void"));
  expect_error([&] { list_source_files({.paths = {folder_.file("no")}}); }, {"no does not exist"});
  expect_error([&] { list_source_files({.paths = {folder_.file("void")}}); }, {"holds no files"});
  EXPECT_THROW(list_source_files({.paths = {text, tokens}}), UsageError);
  EXPECT_EQ(source_bytes(list_source_files({.paths = {text, text}}).files), 2);
  EXPECT_EQ(source_bytes(list_source_files({.paths = {text, "-"}}).files), -1);
}

}  // namespace

}  // namespace ringlet::test
