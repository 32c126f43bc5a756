#include "train/files.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>
#include <xxhash.h>

#include <algorithm>
#include <cerrno>
#include <new>
#include <system_error>
#include <utility>
#include <vector>

#include "kernels/check.h"

namespace ringlet {
namespace {

// Small enough to stay in the cache between summing and writing.
constexpr size_t kChunkBytes = size_t{1} << 20;
// So much may wait in the system's memory: seconds of work for a slow disk.
constexpr int64_t kUnsyncedBytes = int64_t{64} << 20;

const char* advice_for(int error_number) {
  switch (error_number) {
    case ENOSPC:
    case EDQUOT:
      return "free some space, or put the run on another disk";
    case EFBIG:
      return "the system limits the size of files: raise it (ulimit -f), or use another file "
             "system";
    case EROFS:
    case EACCES:
    case EPERM:
      return "choose a folder that you may write to, or change its permissions";
    case ENOTDIR:
    case EEXIST:
      return "a file is in the way: move it, or choose another name";
    case ENOENT:
      return "check the path: nothing is there";
    case EMFILE:
    case ENFILE:
      return "too many files are open: raise the limit (ulimit -n)";
    case EIO:
      return "the disk or its connection is failing: see the system's log, and use another disk";
    default:
      return "see that the path is right and the disk is healthy";
  }
}

}  // namespace

void fail_on_file(std::string_view doing, const std::filesystem::path& path, int error_number) {
  throw Error(fmt::format("cannot {} {}: {}", doing, path.string(),
                          std::generic_category().message(error_number)),
              advice_for(error_number));
}

Descriptor::Descriptor(const std::filesystem::path& path, int flags)
    : number_(::open(path.c_str(), flags | O_CLOEXEC, 0666)) {
  if (number_ < 0) fail_on_file((flags & O_CREAT) != 0 ? "create" : "open", path, errno);
}

Descriptor& Descriptor::operator=(Descriptor&& other) noexcept {
  std::swap(number_, other.number_);
  return *this;
}

Descriptor::~Descriptor() {
  if (number_ >= 0) ::close(number_);
}

Checksum::Checksum() : state_(XXH3_createState()) {
  if (!state_) throw std::bad_alloc();
  XXH3_64bits_reset(state_.get());
}

void Checksum::Free::operator()(XXH3_state_s* state) const { XXH3_freeState(state); }

void Checksum::update(std::span<const std::byte> bytes) {
  XXH3_64bits_update(state_.get(), bytes.data(), bytes.size());
}

uint64_t Checksum::value() const { return XXH3_64bits_digest(state_.get()); }

uint64_t checksum_of(std::string_view text) { return XXH3_64bits(text.data(), text.size()); }

void write_all(int descriptor, std::span<const std::byte> bytes,
               const std::filesystem::path& path) {
  while (!bytes.empty()) {
    const ssize_t count = ::write(descriptor, bytes.data(), bytes.size());
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) fail_on_file("write", path, count < 0 ? errno : EIO);
    bytes = bytes.subspan(static_cast<size_t>(count));
  }
}

OutputFile::OutputFile(const std::filesystem::path& path, EachBlock each_block)
    : path_(path), file_(path, O_WRONLY | O_CREAT | O_EXCL), each_block_(std::move(each_block)) {}

void OutputFile::write(std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const auto chunk = bytes.first(std::min(bytes.size(), kChunkBytes));
    checksum_.update(chunk);
    write_all(file_.get(), chunk, path_);
    bytes_ += static_cast<int64_t>(chunk.size());
    bytes = bytes.subspan(chunk.size());
    if (bytes_ - synced_bytes_ >= kUnsyncedBytes) {
      if (::fdatasync(file_.get()) != 0) fail_on_file("write to disk", path_, errno);
      synced_bytes_ = bytes_;
    }
    if (each_block_) each_block_();
  }
}

Written OutputFile::finish() {
  // A failed fsync is never tried again: the kernel may have dropped the pages and would report
  // success.
  if (::fsync(file_.get()) != 0) fail_on_file("write to disk", path_, errno);
  if (::close(file_.release()) != 0) fail_on_file("close", path_, errno);
  return {bytes_, checksum_.value()};
}

std::string read_text(const std::filesystem::path& path, int64_t max_bytes) {
  const Descriptor file(path, O_RDONLY | O_NONBLOCK);  // a pipe is refused rather than waited for
  struct stat status;
  if (::fstat(file.get(), &status) != 0) fail_on_file("read", path, errno);
  if (!S_ISREG(status.st_mode) || status.st_size > max_bytes) {
    throw Error(fmt::format("{} is not a file of at most {} bytes", path.string(), max_bytes),
                "check that the path is the one that was meant");
  }
  std::string text(static_cast<size_t>(status.st_size), '\0');
  size_t done = 0;
  while (done < text.size()) {
    const ssize_t count = ::read(file.get(), text.data() + done, text.size() - done);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) fail_on_file("read", path, errno);
    if (count == 0) break;
    done += static_cast<size_t>(count);
  }
  text.resize(done);
  return text;
}

Written read_back(const std::filesystem::path& path, const EachBlock& each_block) {
  const Descriptor file(path, O_RDONLY);
  // Only advice: where the system keeps its pages all the same, the sum is still of the file's
  // content.
  ::posix_fadvise(file.get(), 0, 0, POSIX_FADV_DONTNEED);
  std::vector<std::byte> chunk(kChunkBytes);
  Checksum checksum;
  int64_t bytes = 0;
  while (true) {
    const ssize_t count = ::read(file.get(), chunk.data(), chunk.size());
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) fail_on_file("read", path, errno);
    if (count == 0) return {bytes, checksum.value()};
    checksum.update(std::span(chunk).first(static_cast<size_t>(count)));
    bytes += count;
    if (each_block) each_block();
  }
}

void sync_folder(const std::filesystem::path& folder) {
  const Descriptor file(folder, O_RDONLY | O_DIRECTORY);
  // EINVAL: a file system that has nothing to do here.
  if (::fsync(file.get()) != 0 && errno != EINVAL) fail_on_file("write to disk", folder, errno);
}

void rename_path(const std::filesystem::path& from, const std::filesystem::path& to) {
  if (::rename(from.c_str(), to.c_str()) != 0) fail_on_file("rename", from, errno);
}

void remove_file(const std::filesystem::path& path) {
  if (::unlink(path.c_str()) != 0) fail_on_file("delete", path, errno);
}

void create_folders(const std::filesystem::path& folder) {
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  if (error) fail_on_file("create the folder", folder, error.value());
}

void write_atomically(const std::filesystem::path& path, std::string_view text) {
  std::filesystem::path temporary = path;
  temporary += ".tmp";
  std::error_code ignored;  // a leftover, or nothing
  std::filesystem::remove(temporary, ignored);
  try {
    OutputFile file(temporary);
    file.write(text);
    file.finish();
    rename_path(temporary, path);
  } catch (...) {
    std::filesystem::remove(temporary, ignored);
    throw;
  }
  sync_folder(path.has_parent_path() ? path.parent_path() : ".");
}

void check_free_space(const std::filesystem::path& folder, int64_t bytes,
                      std::string_view purpose) {
  struct statvfs status;
  if (::statvfs(folder.c_str(), &status) != 0) fail_on_file("examine", folder, errno);
  const double free_bytes = double(status.f_bavail) * double(status.f_frsize);
  if (free_bytes >= double(bytes)) return;
  throw Error(fmt::format("{} needs {:.1f} MB, {} has {:.1f} MB free", purpose, double(bytes) / 1e6,
                          folder.string(), free_bytes / 1e6),
              "free some space, keep fewer checkpoints, or put the run on another disk");
}

}  // namespace ringlet
