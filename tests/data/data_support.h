#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "data/corpus.h"
#include "data/corpus_writer.h"
#include "data/tasks.h"
#include "tests/support/sanitized.h"

namespace ringlet::test {

/// A temporary folder that goes with its content.
class Folder {
 public:
  Folder();
  ~Folder();
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  const std::string& path() const { return path_; }
  std::string file(const std::string& name) const { return path_ + "/" + name; }
  /// Writes a file, with the folders it stands in; returns its path.
  std::string write(const std::string& name, std::string_view content) const;
  /// Names of all entries, sorted.
  std::vector<std::string> entries() const;

 private:
  std::string path_;
};

std::string read_file(const std::string& path);

/// `length` bytes that look like nothing in particular, the same for the same seed.
std::string random_bytes(int64_t length, uint64_t seed);

using DocumentAnswers = std::vector<TaskSample::Answer>;

/// Writes documents as a corpus, with the answers of each where there are some; returns its path.
std::string write_corpus(const std::string& path, const Tokenizer& tokenizer,
                         const std::vector<std::vector<int32_t>>& documents,
                         const std::vector<DocumentAnswers>& answers = {});
/// The same with the bytes of texts.
std::string write_byte_corpus(const std::string& path, const std::vector<std::string>& documents);
/// Documents of these lengths; token i of the corpus is i % 251.
std::string write_counting_corpus(const std::string& path, const std::vector<int64_t>& lengths,
                                  const std::vector<DocumentAnswers>& answers = {});

std::vector<int32_t> all_tokens(const Corpus& corpus);
/// Each document's text.
std::vector<std::string> texts_of(const Corpus& corpus);

/// Expects an Error whose message holds all of `parts`, and its advice that one.
void expect_error(const std::function<void()>& act, const std::vector<std::string>& parts,
                  const std::string& advice = "");

/// Runs `act` in a forked child; its return value is the child's exit status, 255 stands for an end
/// by a signal, 254 for an exception.
int run_in_child(const std::function<int()>& act);

}  // namespace ringlet::test
