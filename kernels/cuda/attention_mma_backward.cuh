#pragma once

#include <cuda_runtime.h>

#include <limits>
#include <numbers>

#include "kernels/bf16.h"

/// What the two kernels of the backward pass by mma.sync have in common.
namespace ringlet::cuda::mma::backward {

/// A step's pieces; pointers start at the piece.
struct BackwardPieces {
  const Bf16 *q, *k, *v, *d_output;
  const float *lse, *delta;
  const int64_t* first_visible;
  float *dq, *dk, *dv;
  int64_t head_rows;        // from head to head of q, lse, delta, dq
  int64_t d_output_stride;  // elements from row to row
  int64_t query_position, query_stride, key_position, key_stride;
  int queries, keys, heads, kv_heads;
  float scale, scale_log2;

  __device__ int64_t position_of_query(int64_t i) const { return query_position + i * query_stride; }
  __device__ int64_t position_of_key(int64_t i) const { return key_position + i * key_stride; }
};

/// Indices [begin, end).
struct Interval {
  int begin, end;
  __device__ bool holds(int index) const { return begin <= index && index < end; }
  __device__ bool meets(int first, int past) const { return first < end && begin < past; }
  __device__ bool covers(int first, int past) const { return begin <= first && past <= end; }
};

/// Index of the first of `count` positions first + i * stride that is not below `position`.
__device__ inline int first_at_or_after(int64_t position, int64_t first, int64_t stride, int count) {
  const int64_t distance = position - first;
  if (distance <= 0) return 0;
  return int(min(int64_t(count), (distance + stride - 1) / stride));
}

__device__ inline Interval keys_seen(const BackwardPieces& pieces, int query) {
  const auto index = [&](int64_t position) {
    return first_at_or_after(position, pieces.key_position, pieces.key_stride, pieces.keys);
  };
  return {index(pieces.first_visible[query]), index(pieces.position_of_query(query) + 1)};
}

constexpr float kEndless = 1e30f;  // a log-sum-exp that makes every probability 0
constexpr float kSawNothing = -std::numeric_limits<float>::infinity();

/// Statistics of rows as the kernels want them; rows past the last one have probability 0.
__device__ inline float lse_times_log2e(const float* lse, int row, int rows) {
  if (row >= rows || lse[row] == kSawNothing) return kEndless;
  return lse[row] * std::numbers::log2e_v<float>;
}
__device__ inline float scaled_delta(const float* delta, int row, int rows, float scale) {
  return row < rows ? delta[row] * scale : 0.0f;
}

/// Add to dq, or to dk and dv, and launch. Neither pieces.queries nor pieces.keys is 0. head_dim: 64 or 128.
template <int kHeadDim>
void add_query_gradients(cudaStream_t stream, const BackwardPieces& pieces);
template <int kHeadDim>
void add_key_gradients(cudaStream_t stream, const BackwardPieces& pieces);

/// Blocks of a grid: one per tile and head.
unsigned block_count(int rows, int rows_of_tile, int heads);

}  // namespace ringlet::cuda::mma::backward
