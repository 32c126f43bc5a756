#pragma once

#include <cstddef>

#include "kernels/cuda/packs.h"

namespace ringlet::cuda {

/// Starts to copy 16 bytes to shared memory; cp.async's groups tell when they are there.
__device__ inline void fetch_16(void* to, const void* from) {
  const auto address = uint32_t(__cvta_generic_to_shared(to));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address), "l"(from) : "memory");
}

/// Packs of up to 16 bytes on their way from device memory to the threads that want them: kStages times
/// kSlots for each thread, in shared memory where no other thread touches them, so that no barrier guards
/// them. Stages take turns: fetch() fills one and close() ends it; after kStages of those, wait() and read()
/// the oldest, then fill it again.
template <int kStages, int kSlots>
class PackRing {
 public:
  static constexpr int kSlotBytes = 16;
  static constexpr int kBytesPerThread = kStages * kSlots * kSlotBytes;

  /// shared: kBytesPerThread for each thread of the block, aligned to 16 bytes.
  __device__ explicit PackRing(unsigned char* shared) {
    const unsigned threads = blockDim.x * blockDim.y * blockDim.z;
    const unsigned thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
    own_ = shared + thread * kSlotBytes;
    slot_stride_ = int(threads) * kSlotBytes;
  }

  template <int kPack, class T>
  __device__ void fetch(int slot, const T* from) const {
    constexpr int kBytes = int(sizeof(Pack<T, kPack>));
    static_assert(kBytes == 16 || kBytes == 8 || kBytes == 4);
    if constexpr (kBytes == 16) return fetch_16(at(slot), from);
    const auto to = uint32_t(__cvta_generic_to_shared(at(slot)));
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(to), "l"(from), "n"(kBytes) : "memory");
  }
  __device__ void close() {
    asm volatile("cp.async.commit_group;" ::: "memory");
    stage_ = stage_ + 1 == kStages ? 0 : stage_ + 1;
  }
  __device__ void wait() const { asm volatile("cp.async.wait_group %0;" ::"n"(kStages - 1) : "memory"); }
  /// As bytes of one value: a Words, or a Pack.
  template <class Value>
  __device__ Value read(int slot) const {
    return *reinterpret_cast<const Value*>(at(slot));
  }

 private:
  __device__ unsigned char* at(int slot) const { return own_ + (stage_ * kSlots + slot) * slot_stride_; }

  unsigned char* own_;
  int slot_stride_;
  int stage_ = 0;
};

}  // namespace ringlet::cuda
