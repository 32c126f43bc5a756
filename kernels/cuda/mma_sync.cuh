#pragma once

#include <cuda_runtime.h>

#include <cstdint>

/// Instructions of compute capability 8.0 for tiles of bf16 in shared memory, and the layout of such tiles.
///
/// A tile has rows of kWidth elements (64 or 128), without gaps, and begins at a multiple of 1024 bytes. The
/// 16-byte chunk c of row r stands at c ^ (r % 8), so that 8 rows of one chunk, and 8 chunks of one row, lie
/// in all banks.
///
/// Fragments of mma m16n8k16, lane = 4 * g + t:
///   sums   c0, c1: row g, columns 2t, 2t + 1        c2, c3: row g + 8
///   left   a0: row g, depth 2t, 2t + 1   a1: row g + 8   a2: row g, depth 2t + 8, + 9   a3: row g + 8, the
///   same right  b0: depth 2t, 2t + 1, column g            b1: depth 2t + 8, + 9
/// So the sums of two neighbouring products of 8 columns, narrowed, are a left operand of depth 16.
namespace ringlet::cuda {

/// Starts to copy 16 bytes to shared memory; zeros where `bytes` is 0.
__device__ __forceinline__ void copy_async(uint32_t to, const void* from, int32_t bytes) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes)
               : "memory");
}
__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
/// Waits until at most kNewest of this thread's latest groups of copies are under way.
template <int kNewest>
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kNewest) : "memory");
}

__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
  return uint32_t(__cvta_generic_to_shared(pointer));
}

/// Four 8 x 8 matrices; lane l names row l % 8 of matrix l / 8. `load_matrices_transposed` hands out columns.
__device__ __forceinline__ void load_matrices(uint32_t (&to)[4], uint32_t row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(row)
               : "memory");
}
__device__ __forceinline__ void load_matrices_transposed(uint32_t (&to)[4], uint32_t row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(row)
               : "memory");
}

/// sums [16, 8] += left [16, 16] * right [16, 8].
__device__ __forceinline__ void multiply_add(float (&sums)[4], const uint32_t (&left)[4], uint32_t right0,
                                             uint32_t right1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "r"(right0), "r"(right1));
}

/// 2^x; 0 for -infinity, exactly 1 for 0.
__device__ __forceinline__ float fast_exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

/// Where a lane finds its rows for load_matrices, as a byte offset in a tile, for the 16 rows and the 16
/// columns at the tile's beginning. Of rows 16 * i and columns 16 * j on: i * 16 * 2 * kWidth + (offset ^ (j
/// * 32)). Matrices in the order (rows, columns) 00, 10, 01, 11: a left operand as it stands, a right operand
/// transposed.
template <int kWidth>
__device__ __forceinline__ uint32_t rows_first_offset(uint32_t lane) {
  const uint32_t row = lane % 16, chunk = lane / 16;
  return row * (2 * kWidth) + ((chunk ^ (row % 8)) * 16);
}
/// Matrices in the order 00, 01, 10, 11: two right operands whose columns are the tile's rows.
template <int kWidth>
__device__ __forceinline__ uint32_t columns_first_offset(uint32_t lane) {
  const uint32_t row = lane % 8 + lane / 16 * 8, chunk = lane / 8 % 2;
  return row * (2 * kWidth) + ((chunk ^ (row % 8)) * 16);
}

}  // namespace ringlet::cuda
