#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string>

#include "kernels/cpu/cpu_backend.h"

namespace ringlet {

HostMemory::HostMemory(int64_t bytes) : data_(nullptr), bytes_(bytes) {
  CHECK(bytes >= 0, "host memory of ", bytes, " bytes");
  const size_t mapped_bytes = std::max<int64_t>(bytes, 1);
  void* const address = mmap(nullptr, mapped_bytes, PROT_READ | PROT_WRITE,
                             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (address == MAP_FAILED) {
    throw Error("cannot reserve " + std::to_string(bytes) +
                    " bytes of host memory: " + std::strerror(errno),
                "lower memory.arena_bytes, or raise the limit that `ulimit -v` shows");
  }
  // Best effort: without huge pages everything works, only slower.
  madvise(address, mapped_bytes, MADV_HUGEPAGE);
  data_ = static_cast<std::byte*>(address);
}

HostMemory::~HostMemory() { munmap(data_, std::max<int64_t>(bytes_, 1)); }

}  // namespace ringlet
