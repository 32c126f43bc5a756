#pragma once

#include <array>
#include <atomic>
#include <cstddef>

#include "kernels/comm/threads_operation.h"

namespace ringlet::threads {

/// What a rank has asked for and the progress thread has not yet taken: one thread pushes, one pops, no lock.
class PostQueue {
 public:
  /// False: full.
  bool push(const Post& post) {
    const size_t end = end_.load(std::memory_order_relaxed);
    if (end - begin_.load(std::memory_order_acquire) == slots_.size()) return false;
    slots_[end % slots_.size()] = post;
    end_.store(end + 1, std::memory_order_release);
    return true;
  }
  /// The oldest one, or null. It stays until pop().
  const Post* front() const {
    const size_t begin = begin_.load(std::memory_order_relaxed);
    return begin == end_.load(std::memory_order_acquire) ? nullptr : &slots_[begin % slots_.size()];
  }
  void pop() { begin_.store(begin_.load(std::memory_order_relaxed) + 1, std::memory_order_release); }

 private:
  std::array<Post, 128> slots_;
  alignas(64) std::atomic<size_t> begin_{0};
  alignas(64) std::atomic<size_t> end_{0};
};

}  // namespace ringlet::threads
