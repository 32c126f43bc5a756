#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <map>
#include <tuple>
#include <type_traits>

#include "kernels/cuda/cuda_raii.h"
#include "kernels/tensor.h"

namespace ringlet::cuda {

/// kCount neighbouring elements, read and written at once: the address is a multiple of their size.
template <class T, int kCount>
struct alignas(sizeof(T) * kCount) Pack {
  T values[kCount];
};

__device__ inline float widen(float value) { return value; }
__device__ inline float widen(__nv_bfloat16 value) { return __bfloat162float(value); }

template <class T>
__device__ T round_to(float value) {
  if constexpr (std::is_same_v<T, float>)
    return value;
  else
    return __float2bfloat16_rn(value);
}

template <int kCount, class T>
__device__ Pack<T, kCount> load_pack(const T* from) {
  if constexpr (sizeof(Pack<T, kCount>) <= 16) {
    return *reinterpret_cast<const Pack<T, kCount>*>(from);
  } else {
    constexpr int kPart = 16 / int(sizeof(T));
    Pack<T, kCount> whole;
#pragma unroll
    for (int first = 0; first < kCount; first += kPart) {
      const auto part = load_pack<kPart>(from + first);
#pragma unroll
      for (int i = 0; i < kPart; ++i) whole.values[first + i] = part.values[i];
    }
    return whole;
  }
}

template <int kCount, class T>
__device__ void load_floats(const T* from, float (&to)[kCount]) {
  const auto pack = load_pack<kCount>(from);
#pragma unroll
  for (int i = 0; i < kCount; ++i) to[i] = widen(pack.values[i]);
}

template <int kCount, class T>
__device__ void store_floats(const float (&from)[kCount], T* to) {
  constexpr int kMost = 16 / int(sizeof(T)), kPart = kCount < kMost ? kCount : kMost;
#pragma unroll
  for (int first = 0; first < kCount; first += kPart) {
    Pack<T, kPart> part;
#pragma unroll
    for (int i = 0; i < kPart; ++i) part.values[i] = round_to<T>(from[first + i]);
    *reinterpret_cast<Pack<T, kPart>*>(to + first) = part;
  }
}

/// Elements of 16 bytes.
template <class T>
constexpr int kFullPack = 16 / int(sizeof(T));

/// A full pack as it stays in registers for long: as elements, bf16 would take a register each.
using Words = uint4;

template <class T>
__device__ void widen_words(const Words& words, float (&to)[kFullPack<T>]) {
  const uint32_t parts[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if constexpr (std::is_same_v<T, float>) {
      to[i] = __uint_as_float(parts[i]);
    } else {  // the upper half of a float
      to[2 * i] = __uint_as_float(parts[i] << 16);
      to[2 * i + 1] = __uint_as_float(parts[i] & 0xffff0000u);
    }
  }
}

/// Can all of these be read and written 16 bytes at a time?
inline bool all_aligned(std::initializer_list<const void*> addresses) {
  return std::all_of(addresses.begin(), addresses.end(),
                     [](const void* address) { return reinterpret_cast<uintptr_t>(address) % 16 == 0; });
}

/// body(T{}) with the type of activations that `dtype` stands for.
template <class Body>
void with_activations(Dtype dtype, const Body& body) {
  if (dtype == Dtype::bf16)
    body(__nv_bfloat16{});
  else
    body(float{});
}

/// body(kPack) as a constant: full packs of T where rows of `width` begin and end on 16 bytes, else single
/// elements.
template <class T, class Body>
void with_packs(int64_t width, std::initializer_list<const void*> addresses, const Body& body) {
  if (width % kFullPack<T> == 0 && all_aligned(addresses))
    body(std::integral_constant<int, kFullPack<T>>());
  else
    body(std::integral_constant<int, 1>());
}

template <class T>
T* elements(const Tensor& tensor) {
  return reinterpret_cast<T*>(tensor.data);
}

/// Threads of a block whose work is element by element.
inline constexpr int kThreads = 256;

/// Blocks for `count` pieces of work of one thread each, in a loop that strides over the grid.
inline unsigned blocks_for(int64_t count) {
  constexpr int64_t kMostBlocks = 1 << 14;
  return unsigned(std::clamp<int64_t>((count + kThreads - 1) / kThreads, 1, kMostBlocks));
}

__device__ inline int64_t grid_thread() { return int64_t(blockIdx.x) * blockDim.x + threadIdx.x; }
__device__ inline int64_t grid_threads() { return int64_t(gridDim.x) * blockDim.x; }

/// Multiprocessors of the current device.
inline int multiprocessors() {
  int device = 0, count = 0;
  check_cuda(cudaGetDevice(&device));
  check_cuda(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device));
  return count;
}

/// Lets `kernel` have that much dynamic shared memory. Blocks that then run at once on the current device; 0 where
/// a block does not fit. Asked once: the driver takes longer to answer than a small kernel to run.
template <class Kernel>
int64_t blocks_at_once(Kernel* kernel, int threads, int64_t shared_bytes) {
  int device = 0;
  check_cuda(cudaGetDevice(&device));
  thread_local std::map<std::tuple<Kernel*, int, int, int64_t>, int64_t> known;
  const auto [entry, is_new] = known.try_emplace({kernel, device, threads, shared_bytes}, 0);
  if (!is_new) return entry->second;
  cudaFuncAttributes attributes{};
  int most_bytes = 0, resident = 0;
  check_cuda(cudaFuncGetAttributes(&attributes, kernel));
  check_cuda(cudaDeviceGetAttribute(&most_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  if (shared_bytes > most_bytes - int64_t(attributes.sharedSizeBytes)) return 0;
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared_bytes)));
  check_cuda(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, kernel, threads, size_t(shared_bytes)));
  return entry->second = int64_t(resident) * multiprocessors();
}

}  // namespace ringlet::cuda
