#pragma once

#include <atomic>
#include <cstdint>
#include <limits>
#include <thread>

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
  void come_to(int64_t tile) { lowest_.store(tile, std::memory_order_release); }
  /// Waits for whoever holds the group: he is at work, and does not wait for the caller.
  void wait_until_below(int64_t tile) const {
    constexpr int kSpins = 100;
    for (int spins = 0; lowest_.load(std::memory_order_acquire) >= tile;) {
      if (spins < kSpins)
        ++spins;
      else
        std::this_thread::yield();
    }
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
