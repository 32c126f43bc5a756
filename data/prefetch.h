#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#include "data/batch.h"

namespace ringlet {

/// Reads a rank's next windows on a thread of its own, up to `depth` ahead. One thread may call
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

  /// Waits for the next window. Throws what reading it has thrown, again at each further call.
  Batch next();
  /// All the time that next() has waited.
  std::chrono::nanoseconds waited() const { return waited_; }

 private:
  void read_ahead(int64_t first_k);

  const WindowReader& reader_;
  const std::vector<Piece> pieces_;
  const std::function<int64_t(int64_t)> window_at_;
  const size_t depth_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Batch> ready_;
  std::exception_ptr error_;  // comes behind what is ready
  bool stopping_ = false;
  std::chrono::nanoseconds waited_{0};
  std::thread thread_;
};

}  // namespace ringlet
