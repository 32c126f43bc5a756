#include "data/documents.h"

#include <fcntl.h>
#include <fmt/core.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "data/file.h"
#include "kernels/check.h"

namespace ringlet {

namespace {

namespace fs = std::filesystem;

constexpr size_t kReadBytes = 1 << 20;
constexpr size_t kMaxLineBytes = size_t{256} << 20;

InputFormat format_of(const std::string& path, InputFormat wanted) {
  if (wanted != InputFormat::automatic) return wanted;
  const std::string ending = fs::path(path).extension().string();
  if (ending == ".jsonl") return InputFormat::jsonl;
  if (ending == ".bin") return InputFormat::tokens;
  return InputFormat::text;
}

bool hidden(const fs::path& path) { return path.filename().string().starts_with('.'); }

std::vector<std::string> files_below(const std::string& folder) {
  std::vector<std::string> files;
  std::error_code error;
  fs::recursive_directory_iterator entry(folder, error), end;
  for (; !error && entry != end; entry.increment(error)) {
    if (hidden(entry->path())) {
      entry.disable_recursion_pending();
      continue;
    }
    std::error_code broken_link;
    if (entry->is_regular_file(broken_link)) files.push_back(entry->path().string());
  }
  if (error) throw Error(fmt::format("cannot list {}: {}", folder, error.message()));
  if (files.empty()) {
    throw Error(fmt::format("{} holds no files", folder), "Hidden files are not read.");
  }
  std::sort(files.begin(), files.end());
  return files;
}

/// Reads a file, or the standard input, from its beginning to its end.
class Source {
 public:
  explicit Source(const std::string& path)
      : file_(path == "-" ? dup(STDIN_FILENO) : open(path.c_str(), O_RDONLY | O_CLOEXEC), path) {
    if (!file_) fail_with_errno("open", path);
    posix_fadvise(file_.descriptor(), 0, 0, POSIX_FADV_SEQUENTIAL);
  }
  /// The next bytes, at most 1 MiB; none at the end. Valid until the next call.
  std::string_view next() {
    ssize_t got = -1;
    do got = ::read(file_.descriptor(), buffer_.data(), buffer_.size());
    while (got < 0 && errno == EINTR);
    if (got < 0) fail_with_errno("read", file_.path());
    return {buffer_.data(), size_t(got)};
  }

 private:
  File file_;
  std::string buffer_ = std::string(kReadBytes, '\0');
};

/// As git and grep see it: a zero byte near the beginning.
bool is_text(const std::string& path) {
  constexpr size_t kLookedAt = 8192;
  return Source(path).next().substr(0, kLookedAt).find('\0') == std::string_view::npos;
}

void add_folder(const std::string& folder, const DocumentInput& input, SourceList& list) {
  const std::vector<std::string> paths = files_below(folder);
  const auto is = [&](InputFormat format) {
    return [=, &input](const std::string& path) { return format_of(path, input.format) == format; };
  };
  const bool automatic = input.format == InputFormat::automatic, joined = input.unit == DocumentUnit::directory,
             all_text = automatic && joined,
             tokens = !all_text && std::ranges::all_of(paths, is(InputFormat::tokens));
  const size_t before = list.files.size();
  for (const std::string& path : paths) {
    if (automatic && !tokens && !is_text(path)) {
      list.left_out.push_back(path);
      continue;
    }
    const bool lines = !all_text && is(InputFormat::jsonl)(path);
    const InputFormat format = tokens ? InputFormat::tokens : lines ? InputFormat::jsonl : InputFormat::text;
    list.files.push_back({path, format, !joined, joined ? folder : path});
  }
  if (list.files.size() == before) {
    throw Error(fmt::format("{} holds no text: each of its files has a zero byte", folder),
                "Read their bytes with --format text, or name the files.");
  }
  list.files.back().ends_document = true;
}

class JsonLines {
 public:
  JsonLines(const std::string& path, const std::string& field, const TextSink& sink)
      : path_(path), field_(field), sink_(sink) {}

  void read() {
    Source source(path_);
    std::string line;
    for (auto piece = source.next(); !piece.empty(); piece = source.next()) {
      for (size_t end = piece.find('\n'); end != piece.npos; end = piece.find('\n')) {
        line += piece.substr(0, end);
        take(line);
        line.clear();
        piece.remove_prefix(end + 1);
      }
      line += piece;
      if (line.size() > kMaxLineBytes) refuse("is longer than 256 MiB", "Give it as a text file.");
    }
    take(line);
  }

 private:
  [[noreturn]] void refuse(const std::string& reason, const std::string& advice) const {
    throw Error(fmt::format("{}, line {} {}", path_, line_number_ + 1, reason), advice);
  }

  void take(const std::string& line) {
    if (line.find_first_not_of(" \t\r") != line.npos) {
      const auto value = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
      if (!value.is_object()) {
        refuse("is not a JSON object",
               "JSON lines hold one object a line, in UTF-8; --format text reads them as they are.");
      }
      const auto text = value.find(field_);
      if (text == value.end() || !text->is_string()) {
        refuse(fmt::format("has no text field \"{}\"", field_),
               "Name the field that holds the text with --field, or read lines as they are with --format text.");
      }
      sink_.text(text->get_ref<const std::string&>());
      sink_.end(fmt::format("{}:{}", path_, line_number_ + 1));
    }
    ++line_number_;
  }

  const std::string& path_;
  const std::string& field_;
  const TextSink& sink_;
  int64_t line_number_ = 0;
};

/// Cuts the tokens of one file into documents.
class TokenFile {
 public:
  TokenFile(const std::string& path, int64_t vocabulary, int64_t separator, const TokenSink& sink)
      : file_(File::open_to_read(path)),
        vocabulary_(vocabulary),
        separator_(separator),
        sink_(sink) {}

  void read() {
    const int64_t first = header_bytes();
    const int64_t size = file_.size_bytes();
    if ((size - first) % 2 != 0)
      refuse("has an odd number of bytes: it is not a list of u16 tokens");
    std::vector<uint16_t> stored;
    for (int64_t at = first; at < size; at += int64_t(stored.size()) * 2) {
      stored.resize(size_t(std::min<int64_t>(kReadBytes, size - at)) / 2);
      file_.read(at, std::as_writable_bytes(std::span(stored)));
      for (const uint16_t token : stored) take(token);
    }
    end_document();
  }

 private:
  [[noreturn]] void refuse(const std::string& reason) const {
    throw Error(fmt::format("{} {}", file_.path(), reason),
                "Give token files of llm.c (GPT-2) or nanoGPT, and their --vocabulary.");
  }

  int64_t header_bytes() const {
    constexpr int32_t kMagic = 20240520;
    constexpr int64_t kHeaderBytes = 1024;
    std::array<int32_t, 3> head{};
    if (file_.size_bytes() < int64_t(sizeof(head))) return 0;
    file_.read(0, std::as_writable_bytes(std::span(head)));
    if (head[0] != kMagic) return 0;
    if (head[1] != 1) refuse(fmt::format("is of version {}, 1 is known", head[1]));
    if (head[2] < 0 || file_.size_bytes() != kHeaderBytes + 2 * int64_t(head[2])) {
      refuse(fmt::format("claims {} tokens, its size says otherwise", head[2]));
    }
    return kHeaderBytes;
  }

  void take(uint16_t token) {
    if (token >= vocabulary_) {
      refuse(fmt::format("holds token {}, the vocabulary has {} ids", token, vocabulary_));
    }
    if (token == separator_) return end_document();
    waiting_.push_back(token);
    if (waiting_.size() == kReadBytes) hand_over();
  }
  void hand_over() {
    sink_.tokens(waiting_);
    seen_ = seen_ || !waiting_.empty();
    waiting_.clear();
  }
  // a separator before the first token, or at the very end, separates nothing
  void end_document() {
    hand_over();
    if (seen_) sink_.end(fmt::format("{}:{}", file_.path(), ++documents_));
    seen_ = false;
  }

  File file_;
  int64_t vocabulary_, separator_;
  const TokenSink& sink_;
  std::vector<int32_t> waiting_;
  bool seen_ = false;
  int64_t documents_ = 0;
};

}  // namespace

SourceList list_source_files(const DocumentInput& input) {
  SourceList list;
  std::vector<SourceFile>& files = list.files;
  for (const std::string& path : input.paths) {
    if (path != "-" && fs::is_directory(path))
      add_folder(path, input, list);
    else if (path == "-" || fs::exists(path)) {
      files.push_back({path, format_of(path, input.format), true, path});
    } else {
      throw Error(fmt::format("{} does not exist", path), "Check the path.");
    }
  }
  const auto is_tokens = [](const SourceFile& f) { return f.format == InputFormat::tokens; };
  const auto token_files = std::count_if(files.begin(), files.end(), is_tokens);
  if (token_files != 0 && token_files != std::ssize(files)) {
    throw UsageError("text and token files cannot go into one corpus", "Prepare them one by one.");
  }
  return list;
}

int64_t source_bytes(const std::vector<SourceFile>& files) {
  int64_t bytes = 0;
  for (const SourceFile& file : files) {
    std::error_code error;
    if (file.path == "-" || !fs::is_regular_file(file.path, error)) return -1;
    bytes += int64_t(fs::file_size(file.path, error));
  }
  return bytes;
}

void read_text_files(const std::vector<SourceFile>& files, const std::string& json_field,
                     const TextSink& sink) {
  for (const SourceFile& file : files) {
    if (file.format == InputFormat::jsonl) {
      JsonLines(file.path, json_field, sink).read();
      continue;
    }
    Source source(file.path);
    for (auto piece = source.next(); !piece.empty(); piece = source.next()) sink.text(piece);
    if (file.ends_document) sink.end(file.document_name);
  }
}

void read_token_files(const std::vector<SourceFile>& files, int64_t vocabulary, int64_t separator,
                      const TokenSink& sink) {
  for (const SourceFile& file : files) TokenFile(file.path, vocabulary, separator, sink).read();
}

}  // namespace ringlet
