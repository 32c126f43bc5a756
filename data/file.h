#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace ringlet {

/// A file descriptor that closes itself. Reads and writes are whole or an Error that names the
/// file; they move no file position, so that any number of threads may read.
class File {
 public:
  File() = default;
  File(int descriptor, std::string path) : descriptor_(descriptor), path_(std::move(path)) {}
  ~File();
  File(File&& other) noexcept;
  File& operator=(File&& other) noexcept;

  /// An existing regular file.
  static File open_to_read(const std::string& path);
  /// An existing regular file, to change it in place.
  static File open_to_write(const std::string& path);
  /// A new file in `folder` without a name: it is gone when it is closed, however the program ends.
  static File unnamed(const std::string& folder);

  explicit operator bool() const { return descriptor_ >= 0; }
  int descriptor() const { return descriptor_; }
  const std::string& path() const { return path_; }
  int64_t size_bytes() const;
  void read(int64_t offset_bytes, std::span<std::byte> to) const;
  void write(int64_t offset_bytes, std::span<const std::byte> from) const;
  /// Takes the bytes from the disk before anything is written to them.
  void reserve(int64_t bytes) const;
  /// Returns when the content is on the disk.
  void sync() const;

 private:
  int descriptor_ = -1;
  std::string path_;
};

/// The folder that a file stands in; "." where the path names none.
std::string folder_of(const std::string& path);
int64_t free_disk_bytes(const std::string& folder);
/// Makes renames in the folder durable.
void sync_directory(const std::string& folder);
/// Throws Error "cannot ACT PATH: reason" from errno, with advice for a full disk.
[[noreturn]] void fail_with_errno(const std::string& act, const std::string& path);

/// Values appended to an unnamed file, in memory that does not grow with their number.
template <class T>
class Spool {
 public:
  explicit Spool(const std::string& folder) : file_(File::unnamed(folder)) {}

  void append(T value) {
    buffer_.push_back(value);
    if (buffer_.size() == kBufferValues) flush();
  }
  int64_t size() const { return written_ + int64_t(buffer_.size()); }
  /// Writes what is still in memory; before the first read.
  void flush() {
    file_.write(written_ * int64_t(sizeof(T)), std::as_bytes(std::span(buffer_)));
    written_ += int64_t(buffer_.size());
    buffer_.clear();
  }
  /// values.size() values from `first`.
  void read(int64_t first, std::span<T> values) const {
    file_.read(first * int64_t(sizeof(T)), std::as_writable_bytes(values));
  }

 private:
  static constexpr size_t kBufferValues = 1 << 18;
  File file_;
  std::vector<T> buffer_;
  int64_t written_ = 0;
};

}  // namespace ringlet
