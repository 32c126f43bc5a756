#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/bf16.h"

/// Tiles of bf16 in shared memory and products of them by mma.sync (sm_80 and later).
///
/// A tile is [rows, head_dim], row-major; chunk c (16 bytes) of row r stands at chunk c ^ (r & 7) of its row,
/// so that 8 rows of a chunk lie in different banks. Tiles start at multiples of 256 bytes.
/// A warp multiplies 32 rows. Lane l holds, of a block of 16 x 8 sums, rows l / 4 and l / 4 + 8, columns
/// 2 * (l % 4) and the next, as {(row, column), (row, column + 1), (row + 8, column), (row + 8, column + 1)}.
namespace ringlet::cuda::mma_tiles {

template <int kColumns>
using Sums = float[2][kColumns / 8][4];
/// Left operand in registers, [32, kDepth].
template <int kDepth>
using Weights = uint32_t[2][kDepth / 16][4];

__device__ inline uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

/// 16 bytes of global memory to shared memory, asynchronously; zeros when absent, with a valid `from`.
__device__ inline void copy_async(uint32_t to, const void* from, bool present) {
  const int bytes = present ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}

/// This thread's copies have landed. Barrier next, so that all have.
__device__ inline void wait_for_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

/// Starts the copy of the first `present` rows to a tile of kRows rows, zeros below. All kThreads take part.
template <int kRows, int kHeadDim, int kThreads>
__device__ inline void copy_tile(uint32_t tile, const Bf16* from, int64_t row_stride, int present) {
  constexpr int kChunks = kHeadDim / 8, kStep = kThreads / kChunks;
  static_assert(kStep % 8 == 0 && kRows % kStep == 0);
  const int first = int(threadIdx.x) / kChunks, chunk = int(threadIdx.x) % kChunks;
  const uint32_t to = tile + uint32_t(first * kHeadDim * 2 + ((chunk ^ (first & 7)) << 4));
#pragma unroll
  for (int pass = 0; pass < kRows / kStep; ++pass) {
    const int row = first + pass * kStep;
    const Bf16* const source = from + (row < present ? row : 0) * row_stride + chunk * 8;
    copy_async(to + uint32_t(pass * kStep * kHeadDim * 2), source, row < present);
  }
}

__device__ inline void load_blocks(uint32_t (&to)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(address));
}

__device__ inline void load_blocks_transposed(uint32_t (&to)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(address));
}

__device__ inline void multiply_add(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ inline float exp2_approximate(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ inline uint32_t pack_bf16(float low, float high) {
  uint32_t both;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  return both;
}
__device__ inline float low_float(uint32_t both) { return __uint_as_float(both << 16); }
__device__ inline float high_float(uint32_t both) { return __uint_as_float(both & 0xffff0000u); }

/// Where this lane reads in a tile: 16 rows x 16 columns as a left operand, or transposed as a right one.
template <int kHeadDim>
__device__ inline uint32_t left_offset() {
  const uint32_t lane = threadIdx.x % 32;
  return lane % 16 * (kHeadDim * 2) + ((lane / 16 ^ lane % 8) << 4);
}
/// The same for 16 rows x 16 columns of a tile whose transpose is the right operand.
template <int kHeadDim>
__device__ inline uint32_t right_offset() {
  const uint32_t lane = threadIdx.x % 32;
  return (lane % 8 + lane / 16 * 8) * (kHeadDim * 2) + ((lane / 8 % 2 ^ lane % 8) << 4);
}

template <int kColumns>
__device__ inline void clear(Sums<kColumns>& sums) {
#pragma unroll
  for (int m = 0; m < 2; ++m) {
#pragma unroll
    for (int n = 0; n < kColumns / 8; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) sums[m][n][e] = 0.0f;
    }
  }
}

/// sums += a b^T over columns [16 * step, 16 * step + 16). a: 32 rows of a tile, with left_offset;
/// b: kColumns rows of a tile, with right_offset.
template <int kHeadDim, int kColumns>
__device__ inline void add_products(Sums<kColumns>& sums, uint32_t a, uint32_t b, int step) {
  constexpr uint32_t kBlockBytes = 16 * kHeadDim * 2;
  uint32_t left[2][4];
  const uint32_t columns = uint32_t(step) << 5;  // in bytes; whole pairs of chunks, so the swizzle allows xor
  load_blocks(left[0], a ^ columns);
  load_blocks(left[1], (a ^ columns) + kBlockBytes);
#pragma unroll
  for (int n = 0; n < kColumns / 16; ++n) {
    uint32_t right[4];
    load_blocks(right, (b ^ columns) + uint32_t(n) * kBlockBytes);
#pragma unroll
    for (int m = 0; m < 2; ++m) {
      multiply_add(sums[m][2 * n], left[m], right[0], right[1]);
      multiply_add(sums[m][2 * n + 1], left[m], right[2], right[3]);
    }
  }
}

/// sums += weights * tile: kDepth rows of a tile, with left_offset.
template <int kHeadDim, int kDepth>
__device__ inline void add_weighted_rows(Sums<kHeadDim>& sums, const Weights<kDepth>& weights,
                                         uint32_t tile) {
#pragma unroll
  for (int k = 0; k < kDepth / 16; ++k) {
#pragma unroll
    for (int n = 0; n < kHeadDim / 16; ++n) {
      uint32_t right[4];
      load_blocks_transposed(right, (tile ^ (uint32_t(n) << 5)) + uint32_t(k) * (16 * kHeadDim * 2));
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        multiply_add(sums[m][2 * n], weights[m][k], right[0], right[1]);
        multiply_add(sums[m][2 * n + 1], weights[m][k], right[2], right[3]);
      }
    }
  }
}

/// Calls f(pointer to 2 floats, their sums) for this lane's part of 32 rows; the first `present` are there.
template <int kHeadDim, class Function>
__device__ inline void for_each_pair(Sums<kHeadDim>& sums, float* rows, int present, Function f) {
  const int lane = int(threadIdx.x) % 32;
#pragma unroll
  for (int half = 0; half < 4; ++half) {
    const int row = half * 8 + lane / 4;
    if (row >= present) continue;
#pragma unroll
    for (int n = 0; n < kHeadDim / 8; ++n) {
      float* const at = rows + row * kHeadDim + n * 8 + lane % 4 * 2;
      f(reinterpret_cast<float2*>(at), sums[half / 2][n][half % 2 * 2], sums[half / 2][n][half % 2 * 2 + 1]);
    }
  }
}

/// 32 rows of f32 in global memory to sums; zeros for rows that are not there.
template <int kHeadDim>
__device__ inline void load_sums(Sums<kHeadDim>& sums, float* rows, int present) {
  clear<kHeadDim>(sums);
  for_each_pair<kHeadDim>(sums, rows, present, [](const float2* at, float& first, float& second) {
    const float2 pair = *at;
    first = pair.x;
    second = pair.y;
  });
}

template <int kHeadDim>
__device__ inline void store_sums(Sums<kHeadDim>& sums, float* rows, int present) {
  for_each_pair<kHeadDim>(sums, rows, present, [](float2* at, float first, float second) {
    *at = make_float2(first, second);
  });
}

}  // namespace ringlet::cuda::mma_tiles
