#pragma once

#include <atomic>
#include <cstdint>
#include <limits>

#include "kernels/cpu/wait_for_change.h"

namespace ringlet::cpu {

/// How far down the tiles of keys a group of queries has come, for those who add to the same tiles
/// after it.
class KeyProgress {
 public:
  static constexpr int64_t kNothing = std::numeric_limits<int64_t>::max();
  static constexpr int64_t kDone = std::numeric_limits<int64_t>::min();

  /// A view of a count that starts as kNothing.
  explicit KeyProgress(int64_t& lowest) : lowest_(lowest) {}

  /// All tiles from `tile` up are done.
  void come_to(int64_t tile) {
    lowest_.store(tile, std::memory_order_release);
    lowest_.notify_all();
  }
  /// Waits for whoever holds the group: he is at work, and does not wait for the caller.
  void wait_until_below(int64_t tile) const {
    for (int64_t at; (at = lowest_.load(std::memory_order_acquire)) >= tile;) wait_for_change(lowest_, at);
  }
  void wait_until_done() const { wait_until_below(kDone + 1); }

 private:
  std::atomic_ref<int64_t> lowest_;
};

/// Says at the end of its life that nothing is left to wait for.
class DoneAtEnd {
 public:
  explicit DoneAtEnd(KeyProgress& progress) : progress_(progress) {}
  ~DoneAtEnd() { progress_.come_to(KeyProgress::kDone); }
  DoneAtEnd(const DoneAtEnd&) = delete;
  DoneAtEnd& operator=(const DoneAtEnd&) = delete;

 private:
  KeyProgress& progress_;
};

}  // namespace ringlet::cpu
