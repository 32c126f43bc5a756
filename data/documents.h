#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace ringlet {

/// How a file is read. automatic: by its ending (.jsonl: JSON lines, .bin: tokens, else text). Of a folder's files
/// those are left out that are no text (a zero byte in their first 8 KiB); .bin is tokens only where all are, and of a
/// folder that is one document all is text. "-" is the standard input.
enum class InputFormat : uint8_t { automatic, text, jsonl, tokens };

/// file: each file is a document; directory: each folder named as input is one document, its files
/// joined.
enum class DocumentUnit : uint8_t { file, directory };

struct DocumentInput {
  std::vector<std::string> paths;
  InputFormat format = InputFormat::automatic;
  DocumentUnit unit = DocumentUnit::file;
  std::string json_field = "text";
};

/// One file to read; `format` is no longer automatic.
struct SourceFile {
  std::string path;
  InputFormat format = InputFormat::text;
  bool ends_document = true;
  std::string document_name;
};

/// Receives documents in turn, each in any number of pieces and then its end.
struct TextSink {
  std::function<void(std::string_view piece)> text;
  std::function<void(std::string_view name)> end;
};
struct TokenSink {
  std::function<void(std::span<const int32_t> piece)> tokens;
  std::function<void(std::string_view name)> end;
};

struct SourceList {
  std::vector<SourceFile> files;
  std::vector<std::string> left_out;  // of folders: no text
};

/// The files behind the inputs: folders recursively, in sorted order, without hidden entries (a
/// leading dot). Throws Error for a path that is missing or a folder without files to read,
/// UsageError for tokens beside text.
SourceList list_source_files(const DocumentInput& input);

/// Bytes of all files; -1 when one of them is not a regular file.
int64_t source_bytes(const std::vector<SourceFile>& files);

/// Text and JSON lines, read in pieces of 1 MiB: memory does not grow with a document. (A JSON line
/// is held whole and may have 256 MiB.) JSON lines: `json_field` of each line is a document; blank
/// lines are skipped. Throws Error that names file and line.
void read_text_files(const std::vector<SourceFile>& files, const std::string& json_field,
                     const TextSink& sink);

/// Token files: of llm.c (header of 256 int32: magic 20240520, version 1, count; then u16) or of
/// nanoGPT (u16 only). A token that is `separator` ends a document and is not passed on (-1: each
/// file is one document). Throws Error that names the file, also for a token >= vocabulary.
void read_token_files(const std::vector<SourceFile>& files, int64_t vocabulary, int64_t separator,
                      const TokenSink& sink);

}  // namespace ringlet
