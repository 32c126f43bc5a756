#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <memory_resource>
#include <new>

namespace ringlet {

/// Host memory for the small lists of a step: what was freed is given out again, in sizes that are powers of two, and
/// nothing goes back to the system before the end, large pieces neither (std::pmr's pools hand those on). A step that asks
/// for what the one before asked for allocates nothing.
/// One thread at a time.
class RecycledMemory final : public std::pmr::memory_resource {
 public:
  RecycledMemory() = default;
  RecycledMemory(const RecycledMemory&) = delete;
  RecycledMemory& operator=(const RecycledMemory&) = delete;
  /// Everything must have been freed.
  ~RecycledMemory() override {
    for (size_t size_class = 0; size_class < free_.size(); ++size_class) {
      while (void* const block = take(size_class)) ::operator delete(block, kAlignment);
    }
  }

 private:
  struct FreeBlock {
    FreeBlock* next;
  };
  static constexpr std::align_val_t kAlignment{64};

  static size_t class_of(size_t bytes) { return size_t(std::bit_width(std::max(bytes, sizeof(FreeBlock)) - 1)); }
  void* take(size_t size_class) {
    FreeBlock* const block = free_[size_class];
    if (block != nullptr) free_[size_class] = block->next;
    return block;
  }

  void* do_allocate(size_t bytes, size_t alignment) override {
    if (alignment > size_t(kAlignment)) throw std::bad_alloc();
    const size_t size_class = class_of(bytes);
    void* const block = take(size_class);
    return block != nullptr ? block : ::operator new(size_t{1} << size_class, kAlignment);
  }
  void do_deallocate(void* memory, size_t bytes, size_t) override {
    const size_t size_class = class_of(bytes);
    free_[size_class] = new (memory) FreeBlock{free_[size_class]};
  }
  bool do_is_equal(const std::pmr::memory_resource& other) const noexcept override { return this == &other; }

  std::array<FreeBlock*, 64> free_{};  // by the logarithm of their size
};

}  // namespace ringlet
