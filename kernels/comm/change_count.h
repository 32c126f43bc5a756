#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>

namespace ringlet::threads {

/// Counts the changes of something that threads wait for, so that they can without a lock: a waiter notes the count,
/// looks whether what it wants is there, and sleeps only while the count is still the same (an "eventcount"). Any number
/// of threads may tell and sleep.
class ChangeCount {
 public:
  using Clock = std::chrono::steady_clock;

  uint32_t now() const { return count_.load(); }
  /// Something has changed. No system call while nobody sleeps.
  void tell();
  /// Sleeps while the count is `seen`, at most until `deadline`; may return early. False: the deadline has come.
  bool sleep(uint32_t seen, Clock::time_point deadline = Clock::time_point::max());

 private:
  // Who tells raises the count, then looks for sleepers; who sleeps counts itself, then compares the count. In the one
  // order of these four at least one sees the other.
  std::atomic<uint32_t> count_{0}, sleepers_{0};
};

}  // namespace ringlet::threads
