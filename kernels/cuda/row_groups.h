#pragma once

#include "kernels/cuda/packs.h"

namespace ringlet::cuda {

/// How a block shares out rows: threadIdx.y counts rows, the threads of a row stand along x, whole warps
/// each. Thread x has the packs x, x + blockDim.x, ... of its row.
struct RowGroups {
  dim3 threads;
  int packs_per_thread;  // rounded up
};

/// For rows of `packs` packs: a thread has at most `most_packs`, if `most_threads` to a row are enough for it.
inline RowGroups row_groups(int64_t packs, int most_packs, unsigned most_threads) {
  unsigned across = 32;
  while (across < most_threads && int64_t(across) * most_packs < packs) across *= 2;
  const int64_t each = (packs + across - 1) / across;
  return {dim3(across, std::max(1u, unsigned(kThreads) / across)), int(std::max<int64_t>(each, 1))};
}

/// Packs of a row that a thread may keep in registers; as floats they are four times 4 or 8 of them.
inline constexpr int kMostPacks = 4;

/// body(constant): `packs` as a constant up to kMostPacks; 0 beyond.
template <class Body>
void with_pack_count(int packs, const Body& body) {
  if (packs > kMostPacks) return body(std::integral_constant<int, 0>());
  if (packs == 4) return body(std::integral_constant<int, 4>());
  if (packs == 3) return body(std::integral_constant<int, 3>());
  if (packs == 2) return body(std::integral_constant<int, 2>());
  body(std::integral_constant<int, 1>());
}

/// Packs that a thread has room for in registers; see for_packs.
template <int kCount>
constexpr int kKept = kCount > 0 ? kCount : 1;

/// body(i, pack) for the packs of the calling thread; i counts them where kCount, their number at most, is
/// known, and is 0 where it is not (kCount 0).
template <int kCount, class Body>
__device__ void for_packs(int64_t packs, const Body& body) {
  if constexpr (kCount > 0) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const int64_t pack = int64_t(threadIdx.x) + i * int64_t(blockDim.x);
      if (pack < packs) body(i, pack);
    }
  } else {
    for (int64_t pack = threadIdx.x; pack < packs; pack += blockDim.x) body(0, pack);
  }
}

/// Blocks of groups that take all rows, in a loop that strides over the grid.
inline unsigned blocks_of_rows(int64_t rows, const RowGroups& groups) {
  constexpr int64_t kMostBlocks = 1 << 16;
  const int64_t per_block = groups.threads.y;
  return unsigned(std::min<int64_t>((rows + per_block - 1) / per_block, kMostBlocks));
}

struct Sum {
  __device__ float operator()(float a, float b) const { return a + b; }
};
struct Maximum {
  // A NaN wins: it must not vanish from a loss.
  __device__ float operator()(float a, float b) const { return a > b || a != a ? a : b; }
};

/// Combines values over the threads of a row, in an order that the shape of the block decides; every thread
/// gets the result. All threads of the block call it together.
template <class Combine, int kCount>
__device__ void combine_over_row(float (&values)[kCount]) {
  const Combine combine;
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) {
      values[i] = combine(values[i], __shfl_xor_sync(0xffffffffu, values[i], distance));
    }
  }
  if (blockDim.x == 32) return;
  __shared__ float of_warps[32][kCount];
  const int warps = int(blockDim.x) / 32, first = int(threadIdx.y) * warps;
  __syncthreads();  // the last call's values have been read
  if (threadIdx.x % 32 == 0) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) of_warps[first + int(threadIdx.x) / 32][i] = values[i];
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    float all = of_warps[first][i];
    for (int warp = 1; warp < warps; ++warp) all = combine(all, of_warps[first + warp][i]);
    values[i] = all;
  }
}

/// sums[column] += the sum of partials[row][column] over all rows, in a fixed order.
void add_column_sums(cudaStream_t stream, const float* partials, int64_t rows, int64_t row_stride,
                     int64_t width, float* sums);

}  // namespace ringlet::cuda
