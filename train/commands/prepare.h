#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "data/documents.h"
#include "data/tasks.h"

namespace ringlet {

/// What the command `prepare` is asked for.
struct PrepareOptions {
  DocumentInput input;
  /// In place of an input: a generated task (task.name empty: none), its vocabulary that of below.
  TaskOptions task;
  int64_t samples = 10'000;  // documents of the task, all different
  std::string output;  // a path ending in .h5
  /// byte, sentencepiece (trains a model on a sample of the input, kept beside the output as
  /// NAME.model), or the path of a .model file. Not used for token files.
  std::string tokenizer = "byte";
  /// sentencepiece: pieces of the model to train (default 8192). Token files: count of ids (default
  /// 50257, GPT-2, whose end-of-text 50256 separates documents; any other count has no separator,
  /// and gets one more id).
  int64_t vocabulary = 0;
  std::string split = "train";
  /// Share of the tokens, from the end, that goes to NAME.validation.h5: whole documents, or a part
  /// of the only one.
  double validation_share = 0;
};

/// Called now and then; total_bytes is -1 where the input's size is not known.
using PrepareProgress = std::function<void(int64_t done_bytes, int64_t total_bytes)>;

struct PrepareReport {
  struct File {
    std::string path, split, fingerprint;
    int64_t token_count = 0, document_count = 0, file_bytes = 0;
  };
  std::vector<File> files;  // the corpus, then the validation corpus if there is one
  std::string old_validation;  // NAME.validation.h5 of an earlier corpus, beside a new one without any
  std::string tokenizer, tokenizer_hash, model_path;
  int64_t vocabulary = 0;
  int64_t input_bytes = 0;  // of text, or of token files
  int64_t empty_documents = 0;
  std::vector<std::string> left_out;  // files of folders that are no text
  int64_t answer_tokens = 0;  // of a task
  double seconds = 0;
};

/// Makes a corpus from text, tokens or a task. Memory stays below 1 GiB whatever the size of the input
/// (of a task: 40 bytes a sample, to keep them different). An
/// existing output is replaced at the very end, or left as it was. Throws Error for input that
/// cannot be used, UsageError for options that cannot be.
PrepareReport prepare(const PrepareOptions& options, const PrepareProgress& progress = {});

/// A few lines for people, and one JSON object for programs.
std::string to_text(const PrepareReport& report);
std::string to_json(const PrepareReport& report);

}  // namespace ringlet
