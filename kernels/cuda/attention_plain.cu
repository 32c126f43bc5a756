// Attention without tensor cores: f32 or bf16, any head_dim, products in f32. All products go through one 64
// x 64 block whose operands pass through shared memory; sums over keys (or queries) stay in global memory,
// where each element has one thread that goes on with it.
#include <cmath>

#include "kernels/cuda/attention.h"
#include "kernels/cuda/attention_tiles.cuh"
#include "kernels/cuda/cuda_raii.h"

namespace ringlet::cuda::plain {
namespace {

constexpr int kTile = kSlotsPerTile;
constexpr int kThreads = 256;      // 16 x 16, each with a 4 x 4 part of a product
constexpr int kDepth = 32;         // head_dim is multiplied in steps of this
constexpr int kPitch = kTile + 4;  // floats between rows in shared memory; keeps float4 aligned
__device__ constexpr float kUnchanged[4] = {1, 1, 1, 1};
constexpr float kLog2e = 1.44269504088896340736f;

/// What the queries of a tile see, and how their softmax ended (only in the backward pass).
struct QueryRow {
  Slots seen;
  float lse, delta;  // lse times log2(e)
};

struct Shared {
  float operands[kTile * kPitch];  // two of [kDepth, 64], or one of [64, 64 columns]
  float factors[kTile * kPitch];   // [summed over, rows of the result]
  QueryRow queries[kTile];
};

/// Rows of a tile in global memory; those from slots that hold no row read as 0.
template <class T>
struct TileRows {
  T* slot_zero;    // where slot 0 would stand
  int64_t stride;  // elements between rows
  int32_t slot;    // of the first row of the tile
  TiledPiece piece;

  __device__ __forceinline__ bool holds(int32_t row) const { return piece.holds(slot + row); }
  __device__ __forceinline__ T* at(int32_t row, int32_t column) const {
    return slot_zero + int64_t(slot + row) * stride + column;
  }
  __device__ __forceinline__ float4 read(int32_t row, int32_t column, int32_t columns) const {
    if (!holds(row) || column >= columns) return {0, 0, 0, 0};
    return load4(at(row, column));
  }
};

/// Columns [column, column + kDepth) as [kDepth, 64 rows]. Eight rows and four float4 a warp: sectors of
/// global memory are used whole, and banks are met twice at most.
template <class T>
__device__ __forceinline__ void load_transposed(const TileRows<const T>& rows, int32_t column,
                                                int32_t columns, float* to) {
  for (int32_t i = int32_t(threadIdx.x); i < kTile * kDepth / 4; i += kThreads) {
    const int32_t row = (i & 7) + 8 * (i >> 6), x = ((i >> 3) & 7) * 4;
    const float4 v = rows.read(row, column + x, columns);
    float* const at = to + x * kPitch + row;
    at[0] = v.x;
    at[kPitch] = v.y;
    at[2 * kPitch] = v.z;
    at[3 * kPitch] = v.w;
  }
}

/// Columns [column, column + 64) as [64 rows, 64].
template <class T>
__device__ __forceinline__ void load(const TileRows<const T>& rows, int32_t column, int32_t columns,
                                     float* to) {
  for (int32_t i = int32_t(threadIdx.x); i < kTile * kTile / 4; i += kThreads) {
    const int32_t row = i / 16, x = i % 16 * 4;
    *reinterpret_cast<float4*>(to + row * kPitch + x) = rows.read(row, column + x, columns);
  }
}

/// This thread's rows and columns of a block begin at these.
__device__ __forceinline__ int32_t own_row() { return int32_t(threadIdx.x) / 16 * 4; }
__device__ __forceinline__ int32_t own_column() { return int32_t(threadIdx.x) % 16 * 4; }

/// sums += left^T right; left, right: [depth, 64].
__device__ __forceinline__ void multiply(const float* left, const float* right, int32_t depth,
                                         float (&sums)[4][4]) {
  left += own_row();
  right += own_column();
#pragma unroll 8
  for (int32_t k = 0; k < depth; ++k, left += kPitch, right += kPitch) {
    const float4 a = *reinterpret_cast<const float4*>(left), b = *reinterpret_cast<const float4*>(right);
    const float x[4] = {a.x, a.y, a.z, a.w}, y[4] = {b.x, b.y, b.z, b.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) sums[i][j] = fmaf(x[i], y[j], sums[i][j]);
    }
  }
}

/// sums = dot products of the rows of two tiles. Waits for all threads before it touches shared.operands.
template <class T>
__device__ __forceinline__ void multiply_rows(const TileRows<const T>& left, const TileRows<const T>& right,
                                              int32_t head_dim, Shared& shared, float (&sums)[4][4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) sums[i][0] = sums[i][1] = sums[i][2] = sums[i][3] = 0;
  float* const second = shared.operands + kDepth * kPitch;
  for (int32_t column = 0; column < head_dim; column += kDepth) {
    __syncthreads();
    load_transposed(left, column, head_dim, shared.operands);
    load_transposed(right, column, head_dim, second);
    __syncthreads();
    multiply(shared.operands, second, min(kDepth, head_dim - column), sums);
  }
}

/// shared.factors = the block's transpose: [columns, rows].
__device__ __forceinline__ void set_factors(const float (&block)[4][4], Shared& shared) {
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    *reinterpret_cast<float4*>(shared.factors + (own_column() + j) * kPitch + own_row()) = {
        block[0][j], block[1][j], block[2][j], block[3][j]};
  }
}

/// result = rescale * result + factors^T right. The sums go on from what the result holds, so that their bits
/// do not depend on where they are interrupted. Waits for all threads first.
template <class T>
__device__ __forceinline__ void add_product(const TileRows<const T>& right, const float (&rescale)[4],
                                            int32_t head_dim, Shared& shared, const TileRows<float>& result) {
  for (int32_t column = 0; column < head_dim; column += kTile) {
    __syncthreads();
    load(right, column, head_dim, shared.operands);
    float sums[4][4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float4 v = result.read(own_row() + i, column + own_column(), head_dim);
      sums[i][0] = v.x * rescale[i];
      sums[i][1] = v.y * rescale[i];
      sums[i][2] = v.z * rescale[i];
      sums[i][3] = v.w * rescale[i];
    }
    __syncthreads();
    multiply(shared.factors, shared.operands, kTile, sums);
    if (column + own_column() >= head_dim) continue;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (!result.holds(own_row() + i)) continue;
      *reinterpret_cast<float4*>(result.at(own_row() + i, column + own_column())) = {sums[i][0], sums[i][1],
                                                                                     sums[i][2], sums[i][3]};
    }
  }
}

/// The greatest or the sum over the 16 threads that share rows of a block.
__device__ __forceinline__ float highest_in_row(float x) {
#pragma unroll
  for (int distance = 8; distance > 0; distance /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, distance));
  return x;
}
__device__ __forceinline__ float sum_of_row(float x) {
#pragma unroll
  for (int distance = 8; distance > 0; distance /= 2) x += __shfl_xor_sync(0xffffffffu, x, distance);
  return x;
}

/// A running softmax of this thread's four rows.
struct Softmax {
  float maximum[4], sum[4];

  /// Scores of a key tile (dot products) to weights relative to the new maximum; returns through `rescale`
  /// what the sums so far are to be multiplied by.
  __device__ __forceinline__ void fold(const Slots (&seen)[4], int32_t key_slot, float scale,
                                       float (&block)[4][4], float (&rescale)[4]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float highest = -INFINITY;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        block[i][j] = seen[i].hold(key_slot + j) ? block[i][j] * scale : -INFINITY;
        highest = fmaxf(highest, block[i][j]);
      }
      const float now = fmaxf(maximum[i], highest_in_row(highest));
      const float base = now == -INFINITY ? 0.0f : now;  // nothing seen yet: weights become 0, not NaN
#pragma unroll
      for (int j = 0; j < 4; ++j) block[i][j] = exp2f(block[i][j] - base);
      rescale[i] = exp2f(maximum[i] - base);
      const float total = sum_of_row((block[i][0] + block[i][1]) + (block[i][2] + block[i][3]));
      sum[i] = sum[i] * rescale[i] + total;
      maximum[i] = now;
    }
  }
};

struct SoftmaxState {
  float *output, *maximum, *sum;
};

/// A block owns a tile of queries of one head. The last tiles come first: they see the most keys.
template <class T>
__global__ void __launch_bounds__(kThreads)
    forward(StepView view, const T* q, const T* kv, SoftmaxState state, float scale) {
  __shared__ Shared shared;
  const int32_t head = int32_t(blockIdx.x) % view.heads, kv_head = head / view.group();
  const int32_t tiles = view.queries.tile_count(kTile);
  const int32_t slot = (tiles - 1 - int32_t(blockIdx.x) / view.heads) * kTile;
  const KeyTiles keys = key_tiles_of(view, slot, kTile);
  if (keys.first > keys.last) return;

  const int64_t width = view.head_dim, row_zero = view.query_row(head);
  const TileRows<const T> queries{q + row_zero * width, width, slot, view.queries};
  const TileRows<float> output{state.output + row_zero * width, width, slot, view.queries};
  Slots seen[4];
  Softmax softmax;
  for (int i = 0; i < 4; ++i) {
    const int64_t row = row_zero + slot + own_row() + i;
    const bool used = queries.holds(own_row() + i);
    seen[i] = keys_seen_by(view, slot + own_row() + i);
    softmax.maximum[i] = used ? state.maximum[row] : -INFINITY;
    softmax.sum[i] = used ? state.sum[row] : 0.0f;
  }
  for (int32_t tile = keys.last; tile >= keys.first; --tile) {
    const int32_t key_slot = tile * kTile;
    const TileRows<const T> k{kv + view.key_row(kv_head) * width, width, key_slot, view.keys};
    const TileRows<const T> v{kv + view.value_row(kv_head) * width, width, key_slot, view.keys};
    float block[4][4], rescale[4];
    multiply_rows(queries, k, view.head_dim, shared, block);
    softmax.fold(seen, key_slot + own_column(), scale, block, rescale);
    set_factors(block, shared);
    add_product(v, rescale, view.head_dim, shared, output);
  }
  if (own_column() > 0) return;
  for (int i = 0; i < 4; ++i) {
    if (!queries.holds(own_row() + i)) continue;
    const int64_t row = row_zero + slot + own_row() + i;
    state.maximum[row] = softmax.maximum[i];
    state.sum[row] = softmax.sum[i];
  }
}

template <class T>
struct BackwardInput {
  const T *q, *kv, *d_output;
  const float *lse, *delta;
  float scale;  // 1 / sqrt(head_dim)
};

template <class T>
__device__ __forceinline__ TileRows<const T> d_output_rows(const StepView& view, const T* d_output,
                                                           int32_t head, int32_t slot) {
  const int64_t width = view.head_dim, stride = view.heads * width;
  return {d_output + (view.queries.first_row - view.queries.skipped) * stride + head * width, stride, slot,
          view.queries};
}

/// Fills shared.queries. A row that saw nothing, and a slot without a row, sees nothing. No thread may still
/// read what is there; the caller waits before it reads.
__device__ __forceinline__ void load_query_rows(const StepView& view, const float* lse, const float* delta,
                                                int32_t head, int32_t slot, Shared& shared) {
  const int32_t own = int32_t(threadIdx.x), own_slot = slot + own;
  if (own >= kTile) return;
  QueryRow row{{1, 0}, 0, 0};
  if (view.queries.holds(own_slot)) {
    const int64_t at = view.query_row(head) + own_slot;
    if (lse[at] != -INFINITY) row = {keys_seen_by(view, own_slot), lse[at] * kLog2e, delta[at]};
  }
  shared.queries[own] = row;
}

/// A dot product of query and key to the weight, and one of d_output and value to d_score / scale, where
/// seen.
__device__ __forceinline__ void differentiate(const QueryRow& query, int32_t key_slot, float scale,
                                              float& score, float& d_weight) {
  const bool seen = query.seen.hold(key_slot);
  score = seen ? exp2f(score * (scale * kLog2e) - query.lse) : 0.0f;
  d_weight = seen ? score * (d_weight - query.delta) * scale : 0.0f;
}

/// dq of a tile of queries of one head.
template <class T>
__global__ void __launch_bounds__(kThreads)
    backward_queries(StepView view, BackwardInput<T> input, float* dq) {
  __shared__ Shared shared;
  const int32_t head = int32_t(blockIdx.x) % view.heads, kv_head = head / view.group();
  const int32_t tiles = view.queries.tile_count(kTile);
  const int32_t slot = (tiles - 1 - int32_t(blockIdx.x) / view.heads) * kTile;
  const KeyTiles keys = key_tiles_of(view, slot, kTile);
  if (keys.first > keys.last) return;

  load_query_rows(view, input.lse, input.delta, head, slot, shared);  // multiply_rows waits
  const int64_t width = view.head_dim, row_zero = view.query_row(head);
  const TileRows<const T> queries{input.q + row_zero * width, width, slot, view.queries};
  const TileRows<const T> d_output = d_output_rows(view, input.d_output, head, slot);
  const TileRows<float> result{dq + row_zero * width, width, slot, view.queries};
  for (int32_t tile = keys.last; tile >= keys.first; --tile) {
    const int32_t key_slot = tile * kTile;
    const TileRows<const T> k{input.kv + view.key_row(kv_head) * width, width, key_slot, view.keys};
    const TileRows<const T> v{input.kv + view.value_row(kv_head) * width, width, key_slot, view.keys};
    float scores[4][4], d_scores[4][4];
    multiply_rows(queries, k, view.head_dim, shared, scores);
    multiply_rows(d_output, v, view.head_dim, shared, d_scores);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const QueryRow query = shared.queries[own_row() + i];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        differentiate(query, key_slot + own_column() + j, input.scale, scores[i][j], d_scores[i][j]);
      }
    }
    set_factors(d_scores, shared);
    add_product(k, kUnchanged, view.head_dim, shared, result);
  }
}

/// dk and dv of a tile of keys of one KV head. The first tiles are seen by the most queries.
template <class T>
__global__ void __launch_bounds__(kThreads) backward_keys(StepView view, BackwardInput<T> input, float* dkv) {
  __shared__ Shared shared;
  const int32_t kv_head = int32_t(blockIdx.x) % view.kv_heads,
                slot = int32_t(blockIdx.x) / view.kv_heads * kTile;
  const Slots seen_by =
      queries_that_see(view, max(slot, view.keys.skipped), min(slot + kTile, view.keys.slot_end()) - 1);
  const int64_t width = view.head_dim;
  const int64_t key_zero = view.key_row(kv_head) * width, value_zero = view.value_row(kv_head) * width;
  const TileRows<const T> k{input.kv + key_zero, width, slot, view.keys};
  const TileRows<const T> v{input.kv + value_zero, width, slot, view.keys};
  const TileRows<float> dk{dkv + key_zero, width, slot, view.keys};
  const TileRows<float> dv{dkv + value_zero, width, slot, view.keys};
  const int32_t group = view.group();
  if (seen_by.first > seen_by.last) return;
  const int32_t first = seen_by.first / kTile * group, end = (seen_by.last / kTile + 1) * group;
  for (int32_t i = first; i < end; ++i) {  // tile by tile, within a tile head by head
    const int32_t head = kv_head * group + i % group, query_slot = i / group * kTile;
    const int64_t row_zero = view.query_row(head);
    const TileRows<const T> queries{input.q + row_zero * width, width, query_slot, view.queries};
    const TileRows<const T> d_output = d_output_rows(view, input.d_output, head, query_slot);
    load_query_rows(view, input.lse, input.delta, head, query_slot, shared);
    float scores[4][4], d_scores[4][4];  // [keys, queries]
    multiply_rows(k, queries, view.head_dim, shared, scores);
    multiply_rows(v, d_output, view.head_dim, shared, d_scores);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const QueryRow query = shared.queries[own_column() + j];
#pragma unroll
      for (int row = 0; row < 4; ++row) {
        differentiate(query, slot + own_row() + row, input.scale, scores[row][j], d_scores[row][j]);
      }
    }
    set_factors(scores, shared);
    add_product(d_output, kUnchanged, view.head_dim, shared, dv);
    __syncthreads();  // all have read the weights
    set_factors(d_scores, shared);
    add_product(queries, kUnchanged, view.head_dim, shared, dk);
  }
}

template <class T>
void launch_backward(cudaStream_t stream, const StepView& view, const BackwardInput<T>& input, float* dq,
                     float* dkv) {
  backward_queries<T>
      <<<unsigned(view.queries.tile_count(kTile) * view.heads), kThreads, 0, stream>>>(view, input, dq);
  check_cuda(cudaGetLastError());
  backward_keys<T>
      <<<unsigned(view.keys.tile_count(kTile) * view.kv_heads), kThreads, 0, stream>>>(view, input, dkv);
  check_cuda(cudaGetLastError());
}

}  // namespace

void attention_forward(cudaStream_t stream, const AttentionStep& step, const Tensor& q, const Tensor& kv,
                       const AttentionState& state) {
  const StepView view = view_of(step, q);
  const SoftmaxState to{elements<float>(state.output), elements<float>(state.maximum),
                        elements<float>(state.sum)};
  const float scale = kLog2e / std::sqrt(float(view.head_dim));
  const auto launch = [&]<class T>(const T* queries) {
    forward<T><<<unsigned(view.queries.tile_count(kTile) * view.heads), kThreads, 0, stream>>>(
        view, queries, elements<const T>(kv), to, scale);
  };
  if (q.dtype == Dtype::bf16)
    launch(elements<const __nv_bfloat16>(q));
  else
    launch(elements<const float>(q));
  check_cuda(cudaGetLastError());
}

void attention_backward(cudaStream_t stream, const AttentionStep& step, const Tensor& q, const Tensor& kv,
                        const AttentionGradient& gradient, const Tensor& dq, const Tensor& dkv) {
  const StepView view = view_of(step, q);
  const auto launch = [&]<class T>(const T* queries) {
    const BackwardInput<T> input{queries,
                                 elements<const T>(kv),
                                 elements<const T>(gradient.d_output),
                                 elements<const float>(gradient.lse),
                                 elements<const float>(gradient.delta),
                                 1 / std::sqrt(float(view.head_dim))};
    launch_backward<T>(stream, view, input, elements<float>(dq), elements<float>(dkv));
  };
  if (q.dtype == Dtype::bf16)
    launch(elements<const __nv_bfloat16>(q));
  else
    launch(elements<const float>(q));
}

}  // namespace ringlet::cuda::plain
