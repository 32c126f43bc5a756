#include "kernels/recycled_memory.h"

#include <gtest/gtest.h>

#include <cstring>
#include <set>
#include <vector>

namespace ringlet::test {
namespace {

TEST(RecycledMemoryTest, GivesOutAgainWhatWasFreed) {
  RecycledMemory memory;
  for (const size_t bytes : {size_t{0}, size_t{1}, size_t{8}, size_t{9}, size_t{64}, size_t{1000}, size_t{10'000'000}}) {
    void* const first = memory.allocate(bytes);
    std::memset(first, 1, bytes);
    void* const second = memory.allocate(bytes);
    EXPECT_NE(first, second);
    memory.deallocate(first, bytes);
    memory.deallocate(second, bytes);
    const std::set<void*> again{memory.allocate(bytes), memory.allocate(bytes)};
    EXPECT_EQ(again, (std::set<void*>{first, second})) << bytes;
    for (void* const block : again) memory.deallocate(block, bytes);
  }
}

TEST(RecycledMemoryTest, PiecesOfLikeSizeShareMemoryAndAreAligned) {
  RecycledMemory memory;
  void* const block = memory.allocate(100, 64);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(block) % 64, 0u);
  memory.deallocate(block, 100, 64);
  void* const other = memory.allocate(128);
  EXPECT_EQ(other, block);
  memory.deallocate(other, 128);
  EXPECT_THROW(static_cast<void>(memory.allocate(8, 128)), std::bad_alloc);
}

TEST(RecycledMemoryTest, ServesListsThatGrow) {
  RecycledMemory memory;
  for (int round = 0; round < 3; ++round) {
    std::pmr::vector<int> list(&memory);
    for (int i = 0; i < 1000; ++i) list.push_back(i);
    for (int i = 0; i < 1000; ++i) ASSERT_EQ(list[size_t(i)], i);
  }
}

}  // namespace
}  // namespace ringlet::test
