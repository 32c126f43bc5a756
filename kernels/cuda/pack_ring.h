#pragma once

#include <cstddef>

#include "kernels/cuda/packs.h"

namespace ringlet::cuda {

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
    const auto to = uint32_t(__cvta_generic_to_shared(at(slot)));
    if constexpr (kBytes == 16)
      asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
    else
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

/// Lets `kernel` have that much dynamic shared memory. Blocks that then run at once on the current device; 0 where
/// a block does not fit.
template <class Kernel>
int64_t blocks_at_once(Kernel* kernel, int threads, int64_t shared_bytes) {
  cudaFuncAttributes attributes{};
  int device = 0, most_bytes = 0, resident = 0;
  check_cuda(cudaFuncGetAttributes(&attributes, kernel));
  check_cuda(cudaGetDevice(&device));
  check_cuda(cudaDeviceGetAttribute(&most_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  if (shared_bytes > most_bytes - int64_t(attributes.sharedSizeBytes)) return 0;
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared_bytes)));
  check_cuda(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, kernel, threads, size_t(shared_bytes)));
  return int64_t(resident) * multiprocessors();
}

}  // namespace ringlet::cuda
