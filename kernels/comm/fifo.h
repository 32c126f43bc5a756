#pragma once

#include <cstddef>
#include <span>
#include <utility>
#include <vector>

namespace ringlet::threads {

/// A queue of one thread that keeps its memory: unlike std::deque it allocates only to become longer than ever.
template <class T>
class Fifo {
 public:
  bool empty() const { return size_ == 0; }
  size_t size() const { return size_; }
  T& operator[](size_t index) { return slots_[(first_ + index) % slots_.size()]; }
  const T& operator[](size_t index) const { return slots_[(first_ + index) % slots_.size()]; }
  T& front() { return (*this)[0]; }

  void push_back(T value) {
    if (size_ == slots_.size()) grow();
    (*this)[size_++] = std::move(value);
  }
  /// Takes out the elements with these indices, ascending. Costs as many moves as the last of them: little at the front.
  void erase(std::span<const size_t> indices) {
    if (indices.empty()) return;
    size_t kept = indices.back() + 1;  // all behind it stay where they are
    for (size_t at = indices.back() + 1, left = indices.size(); at-- > 0;) {
      if (left > 0 && indices[left - 1] == at) --left;
      else (*this)[--kept] = std::move((*this)[at]);
    }
    for (size_t i = 0; i < indices.size(); ++i) pop_front();
  }
  void pop_front() {
    front() = T();
    first_ = (first_ + 1) % slots_.size();
    --size_;
  }

 private:
  void grow() {
    std::vector<T> longer(2 * slots_.size() + 2);
    for (size_t i = 0; i < size_; ++i) longer[i] = std::move((*this)[i]);
    slots_ = std::move(longer);
    first_ = 0;
  }

  std::vector<T> slots_;
  size_t first_ = 0, size_ = 0;
};

}  // namespace ringlet::threads
