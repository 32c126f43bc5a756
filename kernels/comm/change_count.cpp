#include "kernels/comm/change_count.h"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <climits>
#include <ctime>

namespace ringlet::threads {
namespace {

/// std::atomic::wait would do, but that it knows no deadline.
long futex(std::atomic<uint32_t>& word, int operation, uint32_t value, const timespec* deadline) {
  static_assert(sizeof word == sizeof value && std::atomic<uint32_t>::is_always_lock_free);
  return syscall(SYS_futex, &word, operation | FUTEX_PRIVATE_FLAG, value, deadline, nullptr, FUTEX_BITSET_MATCH_ANY);
}

}  // namespace

void ChangeCount::tell() {
  count_.fetch_add(1);
  if (sleepers_.load() > 0) futex(count_, FUTEX_WAKE, INT_MAX, nullptr);
}

bool ChangeCount::sleep(uint32_t seen, Clock::time_point deadline) {
  // FUTEX_WAIT_BITSET takes a point in time of the clock that steady_clock reads.
  const auto since_boot = deadline.time_since_epoch();
  const auto seconds = std::chrono::floor<std::chrono::seconds>(since_boot);
  const timespec until{.tv_sec = seconds.count(), .tv_nsec = std::chrono::nanoseconds(since_boot - seconds).count()};
  sleepers_.fetch_add(1);
  const long status =
      futex(count_, FUTEX_WAIT_BITSET, seen, deadline == Clock::time_point::max() ? nullptr : &until);
  const bool too_late = status != 0 && errno == ETIMEDOUT;
  sleepers_.fetch_sub(1);
  return !too_late;
}

}  // namespace ringlet::threads
