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
      depth_(depth) {
  CHECK(depth >= 1, "depth ", depth);
  slots_.resize(size_t(depth) + 1);
  thread_ = std::thread([this, first_k] { read_ahead(first_k); });
}

Prefetcher::~Prefetcher() {
  stopping_ = true;
  ++given_;  // only so that who waits for it wakes up
  given_.notify_one();
  thread_.join();
}

void Prefetcher::read_ahead(int64_t first_k) {
  use_all_cores();
  for (int64_t count = 0;; ++count) {
    for (int64_t given = given_; !stopping_ && count - given >= depth_; given = given_) given_.wait(given);
    if (stopping_) return;
    Slot& here = slot(count);
    try {
      reader_.read(window_at_(first_k + count), pieces_, here.batch);
    } catch (...) {
      here.error = std::current_exception();
    }
    const bool ended = here.error != nullptr;
    ++read_;
    read_.notify_one();
    if (ended) return;
  }
}

const Batch& Prefetcher::next() {
  const auto start = std::chrono::steady_clock::now();
  const int64_t count = given_;
  read_.wait(count);  // as long as no more than those have been read
  waited_ += std::chrono::steady_clock::now() - start;
  const Slot& here = slot(count);
  if (here.error) std::rethrow_exception(here.error);
  ++given_;
  given_.notify_one();
  return here.batch;
}

}  // namespace ringlet
