#include "train/commands/prepare.h"

#include <fmt/core.h>
#include <xxhash.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <nlohmann/json.hpp>
#include <unordered_set>

#include "data/corpus.h"
#include "data/corpus_writer.h"
#include "data/text_sample.h"
#include "kernels/check.h"

namespace ringlet {

namespace {

constexpr int64_t kGpt2Vocabulary = 50257;
constexpr int64_t kDefaultPieces = 8192;
constexpr int64_t kProgressBytes = 4 << 20;

std::string without_ending(const std::string& path) {
  return std::filesystem::path(path).replace_extension().string();
}

void check_options(const PrepareOptions& options) {
  const bool has_task = !options.task.name.empty();
  if (options.input.paths.empty() && !has_task) {
    throw UsageError("no input", "Name files or folders, or - , or a task with --task.");
  }
  if (!options.input.paths.empty() && has_task) {
    throw UsageError("a task is generated: it has no input", "Name files or folders, or --task, not both.");
  }
  const auto ending = std::filesystem::path(options.output).extension();
  if (ending != ".h5" && ending != ".hdf5") {
    throw UsageError(fmt::format("the output \"{}\" does not end in .h5", options.output),
                     "Name it like this: -o corpus.h5");
  }
  if (!(options.validation_share >= 0 && options.validation_share < 1)) {
    throw UsageError(fmt::format("--validation {} is not a share", options.validation_share),
                     "Give a number from 0 to below 1, such as 0.1.");
  }
  if (has_task && options.samples < (options.validation_share > 0 ? 2 : 1)) {
    throw UsageError(fmt::format("{} samples are too few", options.samples), "Choose --samples 1000 or so.");
  }
  if (options.split.empty() || options.split.size() >= size_t(kMaxNameBytes)) {
    throw UsageError("--split needs a short name", "Give train, validation or test.");
  }
}

std::string validation_path(const PrepareOptions& options) { return without_ending(options.output) + ".validation.h5"; }

/// What is read must not be written: a corpus in a folder of texts would become text of its own.
void check_outputs(const PrepareOptions& options, const std::vector<SourceFile>& files) {
  for (const std::string& output : {options.output, validation_path(options), without_ending(options.output) + ".model"}) {
    std::error_code absent;
    const auto is_output = [&](const SourceFile& file) { return std::filesystem::equivalent(file.path, output, absent); };
    if (std::ranges::none_of(files, is_output)) continue;
    throw UsageError(fmt::format("\"{}\" would be read and written", output),
                     "Choose an output with -o that is no input, outside of the folders that are read.");
  }
}

/// From the files to the spool, in one go.
class Preparation {
 public:
  Preparation(const PrepareOptions& options, const PrepareProgress& progress)
      : options_(options),
        progress_(progress),
        sources_(is_task() ? SourceList{} : list_source_files(options.input)),
        files_(sources_.files),
        total_bytes_(source_bytes(files_)),
        tokens_(!is_task() && files_.front().format == InputFormat::tokens) {}

  PrepareReport run() {
    const auto start = std::chrono::steady_clock::now();
    if (options_.vocabulary > 0 && !is_task() && !tokens_ && options_.tokenizer != "sentencepiece") {
      throw UsageError(fmt::format("the tokenizer \"{}\" has a vocabulary of its own", options_.tokenizer),
                       "Leave --vocabulary out, or train a tokenizer with --tokenizer sentencepiece.");
    }
    check_outputs(options_, files_);
    if (is_task()) make_task();
    tokenizer_ = task_ ? task_->tokenizer() : tokens_ ? ids() : choose_tokenizer();
    std::error_code failure;  // writing says more
    std::filesystem::create_directories(folder_of(options_.output), failure);
    check_disk();
    spool_ = std::make_unique<CorpusSpool>(folder_of(options_.output), *tokenizer_);
    if (task_)
      spool_samples();
    else if (tokens_)
      spool_tokens();
    else
      spool_text();
    spool_->finish();
    if (spool_->token_count() == 0) {
      throw Error("the input is empty: it holds no text", "Give files with text in them.");
    }
    publish();
    report_.tokenizer = tokenizer_->name();
    report_.tokenizer_hash = tokenizer_->hash();
    report_.vocabulary = tokenizer_->vocabulary();
    report_.empty_documents = spool_->empty_documents();
    report_.left_out = sources_.left_out;
    report_.answer_tokens = spool_->answer_count();
    report_.seconds =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    return report_;
  }

 private:
  bool is_task() const { return !options_.task.name.empty(); }

  void make_task() {
    TaskOptions task = options_.task;
    task.vocabulary = options_.vocabulary;
    task_.emplace(task);
  }

  int64_t gpt2_or_given() const {
    return options_.vocabulary > 0 ? options_.vocabulary : kGpt2Vocabulary;
  }
  bool has_separator() const { return gpt2_or_given() == kGpt2Vocabulary; }

  std::unique_ptr<Tokenizer> ids() const {
    const int64_t count = gpt2_or_given();
    if (has_separator()) return make_id_tokenizer("gpt2", count, count - 1);
    return make_id_tokenizer("ids", count + 1, count);
  }

  std::unique_ptr<Tokenizer> choose_tokenizer() {
    if (options_.tokenizer == "byte") return make_byte_tokenizer();
    if (options_.tokenizer == "sentencepiece") return trained_tokenizer();
    std::ifstream file(options_.tokenizer, std::ios::binary);
    if (!file) {
      throw UsageError(fmt::format("there is no tokenizer \"{}\"", options_.tokenizer),
                       "Give byte, sentencepiece, or the path of a SentencePiece .model file.");
    }
    return make_sentencepiece_tokenizer(std::string(std::istreambuf_iterator<char>(file), {}));
  }

  std::unique_ptr<Tokenizer> trained_tokenizer() {
    if (total_bytes_ < 0) {
      throw UsageError("training a tokenizer reads the input twice, which a pipe cannot do",
                       "Save the input to a file first, or give a finished .model file.");
    }
    TextSample sample;
    const TextSink sink{[&](std::string_view piece) { sample.append(piece); },
                        [&](std::string_view) { sample.end_document(); }};
    read_text_files(files_, options_.input.json_field, sink);
    const int64_t pieces = options_.vocabulary > 0 ? options_.vocabulary : kDefaultPieces;
    return train_sentencepiece(sample.lines(), pieces);
  }

  void check_disk() const {
    if (total_bytes_ < 0 || tokens_ || tokenizer_->name() != "byte") return;
    for (const SourceFile& file : files_) {
      if (file.format != InputFormat::text) return;
    }
    // two bytes a token, once in the spool and once in the corpus
    const int64_t needed = 4 * total_bytes_,
                  free_bytes = free_disk_bytes(folder_of(options_.output));
    if (needed > free_bytes) {
      throw Error(fmt::format("{:.1f} MB are needed for {}, its disk has {:.1f} MB", double(needed) / 1e6,
                              options_.output, double(free_bytes) / 1e6),
                  "Make room on that disk, or write to another one.");
    }
  }

  void count(int64_t bytes) {
    const int64_t before = report_.input_bytes / kProgressBytes;
    report_.input_bytes += bytes;
    if (progress_ && report_.input_bytes / kProgressBytes != before) {
      progress_(report_.input_bytes, total_bytes_);
    }
  }

  void spool_text() {
    TextCutter cutter([&](std::string_view text) { spool_->append(tokenizer_->encode(text)); });
    const auto text = [&](std::string_view piece) {
      count(int64_t(piece.size()));
      cutter.append(piece);
    };
    const auto end = [&](std::string_view name) {
      cutter.finish();
      spool_->end_document(name);
    };
    read_text_files(files_, options_.input.json_field, {text, end});
  }

  void spool_tokens() {
    const auto tokens = [&](std::span<const int32_t> piece) {
      count(std::ssize(piece) * 2);
      spool_->append(piece);
    };
    const auto end = [&](std::string_view name) { spool_->end_document(name); };
    read_token_files(files_, gpt2_or_given(), has_separator() ? kGpt2Vocabulary - 1 : -1,
                     {tokens, end});
  }

  /// Samples that were there before are left out: none of the validation corpus was trained on.
  void spool_samples() {
    constexpr int64_t kMostRepeated = 1000;  // in a row
    std::unordered_set<uint64_t> seen;
    int64_t index = 0;
    for (int64_t count = 0; count < options_.samples; ++count) {
      TaskSample sample;
      for (int64_t tries = 0;; ++tries) {
        if (tries == kMostRepeated) {
          throw Error(fmt::format("{} has hardly more than {} different samples of {} tokens",
                                  options_.task.name, count, task_->options().seq_len),
                      "Choose fewer --samples, a longer --seq-len or a larger --vocabulary.");
        }
        sample = task_->sample(index++);
        const auto bytes = std::as_bytes(std::span(sample.tokens));
        if (seen.insert(XXH3_64bits(bytes.data(), bytes.size())).second) break;
      }
      spool_->append(sample.tokens);
      for (const auto& [place, distance] : sample.answers) spool_->add_answer(place, distance);
      spool_->end_document("");
    }
  }

  void publish() {
    if (options_.validation_share > 0 && spool_->token_count() < 2) {
      throw Error("the input has one token: it cannot be split", "Give more text.");
    }
    const auto parts = split_spool(*spool_, options_.validation_share);
    std::vector<std::unique_ptr<PendingCorpus>> pending;
    for (size_t i = 0; i < parts.size(); ++i) {
      const std::string path = i == 0 ? options_.output : validation_path(options_);
      const std::string split = i == 0 ? options_.split : "validation";
      pending.push_back(std::make_unique<PendingCorpus>(*spool_, parts[i], split, path));
      report_.files.push_back({path, split, "", parts[i].token_count, parts[i].document_count, 0});
    }
    if (parts.size() == 1 && std::filesystem::exists(validation_path(options_))) {
      report_.old_validation = validation_path(options_);
    }
    if (options_.tokenizer == "sentencepiece" && !tokens_ && !task_) write_model();
    for (size_t i = pending.size(); i-- > 0;) {
      pending[i]->publish();
      const Corpus corpus = Corpus::open(report_.files[i].path);
      report_.files[i].fingerprint = corpus.fingerprint();
      report_.files[i].file_bytes = corpus.file_bytes();
    }
  }

  void write_model() {
    report_.model_path = without_ending(options_.output) + ".model";
    std::ofstream file(report_.model_path, std::ios::binary);
    file << tokenizer_->model();
    if (!file.flush()) fail_with_errno("write", report_.model_path);
  }

  const PrepareOptions& options_;
  const PrepareProgress& progress_;
  const SourceList sources_;
  const std::vector<SourceFile>& files_;
  int64_t total_bytes_;
  bool tokens_;
  std::optional<Task> task_;
  std::unique_ptr<Tokenizer> tokenizer_;
  std::unique_ptr<CorpusSpool> spool_;
  PrepareReport report_;
};

}  // namespace

PrepareReport prepare(const PrepareOptions& options, const PrepareProgress& progress) {
  check_options(options);
  return Preparation(options, progress).run();
}

std::string to_text(const PrepareReport& report) {
  int64_t tokens = 0;
  std::string text;
  for (const PrepareReport::File& file : report.files) {
    tokens += file.token_count;
    text +=
        fmt::format("{}: {} tokens in {} document{}, {:.1f} MB, split {}, content {}\n", file.path,
                    file.token_count, file.document_count, file.document_count == 1 ? "" : "s",
                    double(file.file_bytes) / 1e6, file.split, file.fingerprint.substr(0, 8));
  }
  if (!report.old_validation.empty()) {
    text += fmt::format("warning: {} is of an earlier corpus, and may hold what is trained on now\n",
                        report.old_validation);
  }
  text += fmt::format("tokenizer {}, vocabulary {}", report.tokenizer, report.vocabulary);
  if (report.answer_tokens > 0) {
    return text + fmt::format("\n{} tokens are answers: they alone are trained and scored\n",
                              report.answer_tokens);
  }
  text += fmt::format(", {:.3f} tokens per byte of input\n",
                      double(tokens) / double(report.input_bytes));
  if (!report.model_path.empty()) text += fmt::format("tokenizer model: {}\n", report.model_path);
  if (report.empty_documents > 0) {
    text += fmt::format("{} empty document{} left out\n", report.empty_documents,
                        report.empty_documents == 1 ? " was" : "s were");
  }
  if (!report.left_out.empty()) {
    text += fmt::format("{} file{} left out, as no text (a zero byte near the beginning): {}{}\n",
                        report.left_out.size(), report.left_out.size() == 1 ? " was" : "s were",
                        report.left_out.front(), report.left_out.size() == 1 ? "" : ", ...");
  }
  text +=
      fmt::format("{:.1f} MB read in {:.1f} s ({:.0f} MB/s)\n", double(report.input_bytes) / 1e6,
                  report.seconds, double(report.input_bytes) / 1e6 / report.seconds);
  return text;
}

std::string to_json(const PrepareReport& report) {
  nlohmann::ordered_json files = nlohmann::ordered_json::array();
  for (const PrepareReport::File& file : report.files) {
    files.push_back({{"path", file.path},
                     {"split", file.split},
                     {"token_count", file.token_count},
                     {"document_count", file.document_count},
                     {"file_bytes", file.file_bytes},
                     {"fingerprint", file.fingerprint}});
  }
  nlohmann::ordered_json object{{"files", files},
                                {"old_validation", report.old_validation},
                                {"tokenizer", report.tokenizer},
                                {"tokenizer_hash", report.tokenizer_hash},
                                {"tokenizer_model", report.model_path},
                                {"vocabulary", report.vocabulary},
                                {"input_bytes", report.input_bytes},
                                {"empty_documents", report.empty_documents},
                                {"left_out", report.left_out},
                                {"answer_tokens", report.answer_tokens},
                                {"seconds", report.seconds}};
  // a path need not be UTF-8
  return object.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
}

}  // namespace ringlet
