#include "data/file.h"

#include <fcntl.h>
#include <fmt/core.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>

#include "kernels/check.h"

namespace ringlet {

namespace {

File open_regular(const std::string& path, int flags) {
  // O_NONBLOCK: a named pipe must not make the open wait
  File file(open(path.c_str(), flags | O_CLOEXEC | O_NONBLOCK), path);
  if (!file) fail_with_errno("open", path);
  struct stat facts {};
  if (fstat(file.descriptor(), &facts) != 0) fail_with_errno("look at", path);
  if (!S_ISREG(facts.st_mode)) {
    throw Error(fmt::format("cannot open {}: it is not a regular file", path),
                "Name a file, not a folder or a device.");
  }
  return file;
}

}  // namespace

void fail_with_errno(const std::string& act, const std::string& path) {
  const int reason = errno;
  const bool full = reason == ENOSPC || reason == EDQUOT || reason == EFBIG;
  throw Error(fmt::format("cannot {} {}: {}", act, path, std::strerror(reason)),
              full               ? "Make room on that disk, or write to another one."
              : reason == ENOENT ? "Check the path."
              : reason == EACCES ? "Check who may read and write there."
                                 : "");
}

File::~File() {
  if (descriptor_ >= 0) close(descriptor_);
}

File::File(File&& other) noexcept
    : descriptor_(std::exchange(other.descriptor_, -1)), path_(std::move(other.path_)) {}

File& File::operator=(File&& other) noexcept {
  std::swap(descriptor_, other.descriptor_);
  std::swap(path_, other.path_);
  return *this;
}

File File::open_to_read(const std::string& path) { return open_regular(path, O_RDONLY); }

File File::open_to_write(const std::string& path) { return open_regular(path, O_RDWR); }

File File::unnamed(const std::string& folder) {
  std::string path = folder + "/.ringlet-XXXXXX";
  File file(mkostemp(path.data(), O_CLOEXEC), "a temporary file in " + folder);
  if (!file) fail_with_errno("write to", folder);
  unlink(path.c_str());
  return file;
}

int64_t File::size_bytes() const {
  struct stat facts {};
  if (fstat(descriptor_, &facts) != 0) fail_with_errno("look at", path_);
  return facts.st_size;
}

void File::read(int64_t offset_bytes, std::span<std::byte> to) const {
  while (!to.empty()) {
    const ssize_t got = pread(descriptor_, to.data(), to.size(), offset_bytes);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) fail_with_errno("read", path_);
    if (got == 0) {
      throw Error(fmt::format("{} ends at byte {}, in the middle of its data", path_, offset_bytes),
                  "The file was cut short; make it again.");
    }
    offset_bytes += got;
    to = to.subspan(size_t(got));
  }
}

void File::write(int64_t offset_bytes, std::span<const std::byte> from) const {
  while (!from.empty()) {
    const ssize_t done = pwrite(descriptor_, from.data(), from.size(), offset_bytes);
    if (done < 0 && errno == EINTR) continue;
    if (done < 0) fail_with_errno("write", path_);
    offset_bytes += done;
    from = from.subspan(size_t(done));
  }
}

void File::reserve(int64_t bytes) const {
  int status = 0;
  do status = posix_fallocate(descriptor_, 0, bytes);
  while (status == EINTR);
  // some file systems cannot reserve; there a full disk shows when it is written to
  if (status == 0 || status == EOPNOTSUPP || status == EINVAL) return;
  errno = status;
  fail_with_errno("write", path_);
}

void File::sync() const {
  if (fsync(descriptor_) != 0) fail_with_errno("write", path_);
}

std::string folder_of(const std::string& path) {
  const std::string folder = std::filesystem::path(path).parent_path().string();
  return folder.empty() ? "." : folder;
}

int64_t free_disk_bytes(const std::string& folder) {
  struct statvfs facts {};
  if (statvfs(folder.c_str(), &facts) != 0) fail_with_errno("write to", folder);
  return int64_t(facts.f_bavail) * int64_t(facts.f_frsize);
}

void sync_directory(const std::string& folder) {
  const File directory(open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC), folder);
  if (!directory) fail_with_errno("open", folder);
  // some network file systems do not sync folders; their renames are durable by themselves
  if (fsync(directory.descriptor()) != 0 && errno != EINVAL) fail_with_errno("write", folder);
}

}  // namespace ringlet
