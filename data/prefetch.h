#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <exception>
#include <functional>
#include <thread>
#include <vector>

#include "data/batch.h"

namespace ringlet {

/// Reads a rank's next windows on a thread of its own, up to `depth` ahead, in memory that it reuses. One thread may call
/// next(). What was read ahead is not state: a run continues from the count of batches that it has
/// used.
class Prefetcher {
 public:
  /// The k-th window of this rank is window_at(k); reading begins with `first_k`. `reader` must
  /// outlive this; window_at is called from the other thread.
  Prefetcher(const WindowReader& reader, std::vector<Piece> pieces,
             std::function<int64_t(int64_t)> window_at, int64_t first_k, int depth);
  ~Prefetcher();
  Prefetcher(const Prefetcher&) = delete;
  Prefetcher& operator=(const Prefetcher&) = delete;

  /// Waits for the next window, which stays until the next call. Throws what reading it has thrown, again at each further
  /// call.
  const Batch& next();
  /// All the time that next() has waited.
  std::chrono::nanoseconds waited() const { return waited_; }

 private:
  void read_ahead(int64_t first_k);
  struct Slot {
    Batch batch;
    std::exception_ptr error;  // instead of it
  };
  Slot& slot(int64_t count) { return slots_[size_t(count) % slots_.size()]; }

  const WindowReader& reader_;
  const std::vector<Piece> pieces_;
  const std::function<int64_t(int64_t)> window_at_;
  const int64_t depth_;
  std::vector<Slot> slots_;                  // those ahead, and the one that was given last
  std::atomic<int64_t> read_{0}, given_{0};  // so many slots, from the first on
  std::atomic<bool> stopping_{false};
  std::chrono::nanoseconds waited_{0};
  std::thread thread_;
};

}  // namespace ringlet
