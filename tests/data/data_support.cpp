#include "tests/data/data_support.h"

#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "kernels/check.h"
#include "kernels/random.h"

namespace ringlet::test {

namespace fs = std::filesystem;

Folder::Folder() {
  std::string name = testing::TempDir() + "ringlet-data-XXXXXX";
  EXPECT_NE(mkdtemp(name.data()), nullptr) << name;
  path_ = name;
}

Folder::~Folder() {
  std::error_code ignored;
  fs::remove_all(path_, ignored);
}

std::string Folder::write(const std::string& name, std::string_view content) const {
  fs::create_directories(fs::path(file(name)).parent_path());
  std::ofstream(file(name), std::ios::binary) << content;
  return file(name);
}

std::vector<std::string> Folder::entries() const {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(path_)) names.push_back(entry.path().filename());
  std::sort(names.begin(), names.end());
  return names;
}

std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

std::string random_bytes(int64_t length, uint64_t seed) {
  std::string bytes(size_t(length), '\0');
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = char(CounterRandom(seed, 0).bits(i));
  return bytes;
}

std::string write_corpus(const std::string& path, const Tokenizer& tokenizer,
                         const std::vector<std::vector<int32_t>>& documents,
                         const std::vector<DocumentAnswers>& answers) {
  CorpusSpool spool(folder_of(path), tokenizer);
  for (size_t i = 0; i < documents.size(); ++i) {
    spool.append(documents[i]);
    if (i < answers.size()) {
      for (const auto& [place, distance] : answers[i]) spool.add_answer(place, distance);
    }
    spool.end_document("document " + std::to_string(i));
  }
  spool.finish();
  PendingCorpus(spool, split_spool(spool, 0)[0], "train", path).publish();
  return path;
}

std::string write_byte_corpus(const std::string& path, const std::vector<std::string>& documents) {
  const auto tokenizer = make_byte_tokenizer();
  std::vector<std::vector<int32_t>> tokens;
  for (const std::string& document : documents) tokens.push_back(tokenizer->encode(document));
  return write_corpus(path, *tokenizer, tokens);
}

std::string write_counting_corpus(const std::string& path, const std::vector<int64_t>& lengths,
                                  const std::vector<DocumentAnswers>& answers) {
  std::vector<std::vector<int32_t>> documents;
  int32_t next = 0;
  for (const int64_t length : lengths) {
    auto& document = documents.emplace_back();
    for (int64_t i = 0; i < length; ++i) document.push_back(next++ % 251);
  }
  return write_corpus(path, *make_byte_tokenizer(), documents, answers);
}

std::vector<int32_t> all_tokens(const Corpus& corpus) {
  std::vector<int32_t> tokens(size_t(corpus.token_count()));
  corpus.read(0, tokens);
  return tokens;
}

std::vector<std::string> texts_of(const Corpus& corpus) {
  const auto tokenizer = corpus.tokenizer();
  const auto offsets = corpus.document_offsets();
  std::vector<std::string> texts;
  for (size_t i = 1; i < offsets.size(); ++i) {
    std::vector<int32_t> tokens(size_t(offsets[i] - offsets[i - 1]));
    corpus.read(offsets[i - 1], tokens);
    texts.push_back(tokenizer->decode(tokens));
  }
  return texts;
}

void expect_error(const std::function<void()>& act, const std::vector<std::string>& parts, const std::string& advice) {
  try {
    act();
  } catch (const Error& error) {
    const std::string text = error.what();
    for (const std::string& part : parts) {
      EXPECT_NE(text.find(part), std::string::npos) << "\"" << text << "\" does not hold \"" << part << "\"";
    }
    EXPECT_NE(error.advice.find(advice), std::string::npos) << error.advice;
    return;
  }
  ADD_FAILURE() << "no Error; expected one with \"" << (parts.empty() ? "" : parts[0]) << "\"";
}

int run_in_child(const std::function<int()>& act) {
  const pid_t child = fork();
  if (child == 0) {
    int status = 254;
    try {
      status = act();
    } catch (...) {
    }
    _exit(status);
  }
  int status = 0;
  waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 255;
}

}  // namespace ringlet::test
