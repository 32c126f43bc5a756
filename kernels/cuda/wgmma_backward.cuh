#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#include "kernels/backend.h"
#include "kernels/cuda/wgmma.cuh"

namespace ringlet::cuda::wgmma {

inline constexpr int kThreads = 3 * kWarpgroup;
inline constexpr int kLoaderRegisters = 56, kComputeRegisters = 224;  // 56 + 2 * 224 of 3 * 168
inline constexpr int kComputeWarps = 8;
inline constexpr int kOwnRows = 128;  // of the tile that a block owns
inline constexpr int kOwnLoads = 2;   // of that tile: q and d_output, or k and v

/// What both kernels of the backward pass know of a step. Queries are counted from the first of the step,
/// keys from the first of the block.
struct BackwardStep {
  const int64_t* first_visible;  // [query_count], non-decreasing
  const float *lse, *delta;      // of the first query of head 0; heads lie head_rows apart
  float* dq;                     // likewise
  float* dkv;                    // [2, kv_heads, key_count, head_dim]
  Write write;                   // of dkv
  int64_t query_position, query_stride, key_position, key_stride;
  int64_t head_rows;
  int query_count, key_count, heads, kv_heads;
  float scale, scale_log2;  // 1 / sqrt(head_dim), and that times log2(e)

  __device__ int64_t position_of_query(int query) const { return query_position + query_stride * query; }
  __device__ int64_t position_of_key(int key) const { return key_position + key_stride * key; }
};

/// Indices first .. last; none where first > last.
struct Interval {
  int first, last;
};

// ---- who sees whom ----------------------------------------------------------------------------------------
__device__ inline int64_t floor_divide(int64_t a, int64_t positive) {
  if (positive == 1) return a;
  const int64_t quotient = a / positive;
  return quotient * positive > a ? quotient - 1 : quotient;
}
__device__ inline int clamp_index(int64_t index, int low, int high) {
  return int(index < low ? low : index > high ? high : index);
}
__device__ inline int first_key_seen(const BackwardStep& step, int query) {
  const int64_t distance = step.first_visible[query] - step.key_position;
  return clamp_index(floor_divide(distance + step.key_stride - 1, step.key_stride), 0, step.key_count);
}
__device__ inline int last_key_seen(const BackwardStep& step, int query) {
  const int64_t distance = step.position_of_query(query) - step.key_position;
  return clamp_index(floor_divide(distance, step.key_stride), -1, step.key_count - 1);
}
__device__ inline Interval keys_seen(const BackwardStep& step, int query) {
  return {first_key_seen(step, query), last_key_seen(step, query)};
}
/// Whether each of these queries sees each of these keys.
__device__ inline bool all_visible(const BackwardStep& step, Interval queries, Interval keys) {
  return step.position_of_key(keys.last) <= step.position_of_query(queries.first) &&
         step.position_of_key(keys.first) >= step.first_visible[queries.last];
}

/// The first index of [begin, end) whose value is above `limit`, or end; values do not fall. For whole warps:
/// a round asks 32 values at once, since a chain of 20 loads would be felt.
__device__ inline int first_above(const int64_t* values, int begin, int end, int64_t limit) {
  if (begin < end && values[end - 1] <= limit) return end;
  const int lane = int(threadIdx.x % 32);
  while (begin < end) {
    const int step = (end - begin + 31) / 32;
    const int64_t at = begin + int64_t(lane) * step;
    const int not_above = __popc(__ballot_sync(0xffffffffu, at < end && values[at] <= limit));
    if (not_above == 0) return begin;
    end = int(min(int64_t(end), begin + int64_t(not_above) * step));
    begin += (not_above - 1) * step + 1;
  }
  return begin;
}
/// The queries that may see any of these keys. For whole warps.
__device__ inline Interval queries_that_see(const BackwardStep& step, Interval keys) {
  const int64_t distance = step.position_of_key(keys.first) - step.query_position;
  const int first =
      clamp_index(floor_divide(distance + step.query_stride - 1, step.query_stride), 0, step.query_count);
  const int64_t last_position = step.position_of_key(keys.last);
  return {first, first_above(step.first_visible, first, step.query_count, last_position) - 1};
}

/// LSE times log2(e). A row that saw nothing gets probability 0 from an endless sum.
__device__ inline float lse_log2(float lse) {
  return lse == -INFINITY ? INFINITY : lse * 1.4426950408889634f;
}

// ---- tiles ------------------------------------------------------------------------------------------------
/// The dynamic shared memory from its first place for a tile.
__device__ __forceinline__ std::byte* tiles_begin(std::byte* memory) {
  return memory + (kTileAlignment - shared_address(memory) % kTileAlignment) % kTileAlignment;
}

/// A value that all lanes of a warp have, so that the compiler knows: descriptors are made of it.
__device__ __forceinline__ int uniform(int value) { return __shfl_sync(0xffffffffu, value, 0); }

/// One head's tile of kRows rows of a map over [rows, heads * head_dim]. Announces its bytes.
template <int kRows, int kHeadDim>
__device__ __forceinline__ void load_head_tile(uint32_t to, const CUtensorMap& map, int row, int head,
                                               uint32_t barrier) {
  barrier_arrive_expect(barrier, kRows * kHeadDim * 2);
#pragma unroll
  for (int slab = 0; slab < kHeadDim / kSlabColumns; ++slab) {
    load_slab(to + slab * kRows * kSlabRowBytes, map, head * kHeadDim + slab * kSlabColumns, row, 0, barrier);
  }
}

/// sums [64, kColumns] = a * b^T over head_dim. a: 64 rows of a tile of kRowsOfA; b: a tile of kColumns rows.
template <int kHeadDim, int kRowsOfA, int kColumns>
__device__ __forceinline__ void multiply_rows(float (&sums)[kColumns / 2], uint32_t a, uint32_t b) {
  const uint64_t a_operand = operand(a, kRowsOfA), b_operand = operand(b, kColumns);
#pragma unroll
  for (int k = 0; k < kHeadDim / 16; ++k) {
    const uint64_t a_part = a_operand + step_k(k, kRowsOfA), b_part = b_operand + step_k(k, kColumns);
    multiply<Major::k, Major::k>(sums, a_part, b_part, k > 0);
  }
}
/// sums [64, head_dim] += a * b. a: [64, kRows] in registers; b: a tile of kRows rows.
template <int kHeadDim, int kRows>
__device__ __forceinline__ void add_product(float (&sums)[kHeadDim / 2], const uint32_t (&a)[kRows / 16][4],
                                            uint32_t b) {
  const uint64_t b_operand = operand(b, kRows);
#pragma unroll
  for (int k = 0; k < kRows / 16; ++k) multiply<Major::mn>(sums, a[k], b_operand + step_mn(k), 1);
}

/// Columns 16 k .. 16 k + 15 of a fragment as the left operand of the next product.
template <int kCount>
__device__ __forceinline__ void pack_fragment(uint32_t (&packed)[4], const float (&values)[kCount], int k) {
#pragma unroll
  for (int i = 0; i < 4; ++i) packed[i] = pack_bf16(values[8 * k + 2 * i], values[8 * k + 2 * i + 1]);
}

/// to [64, head_dim] = or += factor * sums, rows from `first_row` of `row_count`; nobody else writes there.
template <int kHeadDim>
__device__ __forceinline__ void write_rows(Write write, float* to, int first_row, int row_count, float factor,
                                           const float (&sums)[kHeadDim / 2]) {
  const int thread = int(threadIdx.x % kWarpgroup);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = first_row + thread / 32 * 16 + thread % 32 / 4 + 8 * half;
    if (row >= row_count) continue;
    float* const at = to + int64_t(row) * kHeadDim + thread % 4 * 2;
#pragma unroll
    for (int i = 0; i < kHeadDim / 8; ++i) {
      float2* const pair = reinterpret_cast<float2*>(at + 8 * i);
      const float2 old = write == Write::add ? *pair : float2{};
      const float even = sums[4 * i + 2 * half], odd = sums[4 * i + 2 * half + 1];
      *pair = make_float2(fmaf(factor, even, old.x), fmaf(factor, odd, old.y));
    }
  }
}

// ---- two warpgroups take turns ----------------------------------------------------------------------------
// One issues its products while the other computes probabilities. Both make equally many turns.
__device__ __forceinline__ void await_turn(int warpgroup) {
  named_barrier_sync(1 + warpgroup, 2 * kWarpgroup);
}
__device__ __forceinline__ void pass_turn(int warpgroup) {
  named_barrier_arrive(2 - warpgroup, 2 * kWarpgroup);
}

/// One arrival per warp, after all its lanes are done.
__device__ __forceinline__ void warp_arrive(uint32_t barrier) {
  __syncwarp();
  if (threadIdx.x % 32 == 0) barrier_arrive(barrier);
}

}  // namespace ringlet::cuda::wgmma
