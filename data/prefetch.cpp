#include "data/prefetch.h"

#include <utility>

#include "kernels/check.h"
#include "kernels/use_all_cores.h"

namespace ringlet {

Prefetcher::Prefetcher(const WindowReader& reader, std::vector<Piece> pieces,
                       std::function<int64_t(int64_t)> window_at, int64_t first_k, int depth)
    : reader_(reader),
      pieces_(std::move(pieces)),
      window_at_(std::move(window_at)),
      depth_(size_t(depth)) {
  CHECK(depth >= 1, "depth ", depth);
  thread_ = std::thread([this, first_k] { read_ahead(first_k); });
}

Prefetcher::~Prefetcher() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

void Prefetcher::read_ahead(int64_t first_k) {
  use_all_cores();
  for (int64_t k = first_k;; ++k) {
    {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [&] { return stopping_ || ready_.size() < depth_; });
      if (stopping_) return;
    }
    Batch batch;
    std::exception_ptr error;
    try {
      batch = reader_.read(window_at_(k), pieces_);
    } catch (...) {
      error = std::current_exception();
    }
    {
      const std::lock_guard lock(mutex_);
      if (error)
        error_ = error;
      else
        ready_.push_back(std::move(batch));
    }
    changed_.notify_all();
    if (error) return;
  }
}

Batch Prefetcher::next() {
  const auto start = std::chrono::steady_clock::now();
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return !ready_.empty() || error_; });
  waited_ += std::chrono::steady_clock::now() - start;
  if (ready_.empty()) std::rethrow_exception(error_);
  Batch batch = std::move(ready_.front());
  ready_.pop_front();
  lock.unlock();
  changed_.notify_all();
  return batch;
}

}  // namespace ringlet
