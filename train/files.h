#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>

struct XXH3_state_s;

namespace ringlet {

/// Throws Error: what was being done to which path, why it failed, and what to do about it.
[[noreturn]] void fail_on_file(std::string_view doing, const std::filesystem::path& path,
                               int error_number);

/// An open file, closed at the end. Throws Error when it cannot be opened.
class Descriptor {
 public:
  Descriptor(const std::filesystem::path& path, int flags);
  Descriptor(Descriptor&& other) noexcept : number_(other.release()) {}
  Descriptor& operator=(Descriptor&& other) noexcept;
  ~Descriptor();
  int get() const { return number_; }
  /// The caller closes it from now on.
  int release() { return std::exchange(number_, -1); }

 private:
  int number_;
};

/// XXH3-64 of a stream of bytes.
class Checksum {
 public:
  Checksum();
  void update(std::span<const std::byte> bytes);
  uint64_t value() const;

 private:
  struct Free {
    void operator()(XXH3_state_s* state) const;
  };
  std::unique_ptr<XXH3_state_s, Free> state_;
};

uint64_t checksum_of(std::string_view text);

/// What was meant to be written: counted and summed before the bytes went to the system.
struct Written {
  int64_t bytes = 0;
  uint64_t checksum = 0;
};

/// Called after each block of a large file that was written or read: its user is seen to move. May be absent.
using EachBlock = std::function<void()>;

/// A new file under write. Every failure is an Error that names the path; nothing is mapped, so
/// that a full disk is an error rather than a signal. A file that was not finished counts as not
/// written. What was written goes to the disk bit by bit, so that no single call takes long.
class OutputFile {
 public:
  /// The file must not exist.
  explicit OutputFile(const std::filesystem::path& path, EachBlock each_block = {});
  void write(std::span<const std::byte> bytes);
  void write(std::string_view text) { write(std::as_bytes(std::span(text))); }
  /// To the disk (fsync), then closed.
  Written finish();

 private:
  std::filesystem::path path_;
  Descriptor file_;
  EachBlock each_block_;
  Checksum checksum_;
  int64_t bytes_ = 0, synced_bytes_ = 0;
};

/// Writes all bytes to an open file, `path` is for the message.
void write_all(int descriptor, std::span<const std::byte> bytes, const std::filesystem::path& path);

/// A whole small file. Throws Error when it cannot be read or is larger than `max_bytes`.
std::string read_text(const std::filesystem::path& path, int64_t max_bytes);

/// Size and checksum of a file as the disk has it: clean pages are dropped from memory first.
Written read_back(const std::filesystem::path& path, const EachBlock& each_block = {});

/// Makes the names in a folder durable.
void sync_folder(const std::filesystem::path& folder);

/// Gives a file or folder another name. An existing file is replaced.
void rename_path(const std::filesystem::path& from, const std::filesystem::path& to);

void remove_file(const std::filesystem::path& path);

void create_folders(const std::filesystem::path& folder);

/// Readers see the old text or the new one, never a part; durable on return.
void write_atomically(const std::filesystem::path& path, std::string_view text);

/// Throws Error when the file system of `folder` has less than `bytes` left; `purpose` is for the
/// message.
void check_free_space(const std::filesystem::path& folder, int64_t bytes, std::string_view purpose);

}  // namespace ringlet
