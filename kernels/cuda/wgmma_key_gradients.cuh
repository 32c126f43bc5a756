#pragma once

#include <cstddef>

#include "kernels/cuda/wgmma_backward.cuh"

namespace ringlet::cuda::wgmma {

/// What a tile of queries needs beside q and d_output, for the columns of the transposed scores.
template <int kQueries>
struct QueryColumns {
  float lse[kQueries];  // times log2(e)
  float delta[kQueries];
  Interval seen[kQueries];  // only where some_masked
  int some_masked;
};

/// Shared memory: k, v of the tile; per stage q and d_output of a tile of queries; their columns; barriers.
template <int kHeadDim>
struct KeyBlock {
  static constexpr int kQueries = kHeadDim == 64 ? 128 : 64;  // what the registers hold beside dk and dv
  static constexpr int kStages = 4;
  static constexpr int kOwnBytes = kOwnRows * kHeadDim * 2, kTileBytes = kQueries * kHeadDim * 2;
  static constexpr int kColumnsAt = 2 * kOwnBytes + 2 * kStages * kTileBytes;
  static constexpr int kColumnsBytes = (int(sizeof(QueryColumns<kQueries>)) + 15) / 16 * 16;
  static constexpr int kBarriersAt = kColumnsAt + kStages * kColumnsBytes;
  static constexpr int kBytes = kBarriersAt + (1 + 2 * kStages) * 8 + kTileAlignment;
  static constexpr int kColumnWarps = 2;                // the last ones of warpgroup 0
  static constexpr int kStageLoads = 2 + kColumnWarps;  // arrivals

  std::byte* memory;
  uint32_t begin;
  int kv_head;
  Interval keys, query_tiles;

  __device__ uint32_t k() const { return begin; }
  __device__ uint32_t v() const { return begin + kOwnBytes; }
  __device__ uint32_t q(int stage) const { return begin + 2 * kOwnBytes + 2 * stage * kTileBytes; }
  __device__ uint32_t d_output(int stage) const { return q(stage) + kTileBytes; }
  __device__ QueryColumns<kQueries>& columns(int stage) const {
    return *reinterpret_cast<QueryColumns<kQueries>*>(memory + kColumnsAt + stage * kColumnsBytes);
  }
  __device__ uint32_t own_loaded() const { return begin + kBarriersAt; }
  __device__ uint32_t loaded(int stage) const { return own_loaded() + 8 + 16 * stage; }
  __device__ uint32_t free(int stage) const { return loaded(stage) + 8; }

  __device__ void init_barriers() const {
    barrier_init(own_loaded(), kOwnLoads);
    for (int stage = 0; stage < kStages; ++stage) {
      barrier_init(loaded(stage), kStageLoads);
      barrier_init(free(stage), kComputeWarps);
    }
    barrier_init_fence();
  }
};

struct KeyMaps {
  CUtensorMap q, d_output, kv;
};

template <int kHeadDim>
__device__ __forceinline__ void load_own_keys(const BackwardStep& step, const KeyMaps& maps,
                                              const KeyBlock<kHeadDim>& block) {
  load_tile<kOwnRows, kHeadDim>(block.k(), maps.kv, block.keys.first, block.kv_head, block.own_loaded());
  load_tile<kOwnRows, kHeadDim>(block.v(), maps.kv, block.keys.first, step.kv_heads + block.kv_head,
                                block.own_loaded());
}

/// Tile by tile upwards, within a tile head by head; one thread.
template <int kHeadDim>
__device__ __forceinline__ void load_for_keys(const BackwardStep& step, const KeyMaps& maps,
                                              const KeyBlock<kHeadDim>& block) {
  using Block = KeyBlock<kHeadDim>;
  const int group = step.heads / step.kv_heads, first_head = block.kv_head * group;
  Turn<Block::kStages> turn;
  for (int tile = block.query_tiles.first; tile <= block.query_tiles.last; ++tile) {
    const int row = tile * Block::kQueries;
    for (int head = first_head; head < first_head + group; ++head, turn.advance()) {
      const uint32_t loaded = block.loaded(turn.stage), d_output = block.d_output(turn.stage);
      barrier_wait(block.free(turn.stage), turn.parity ^ 1);
      load_tile<Block::kQueries, kHeadDim>(block.q(turn.stage), maps.q, row, head, loaded);
      load_head_tile<Block::kQueries, kHeadDim>(d_output, maps.d_output, row, head, loaded);
    }
  }
}

/// The columns of the same tiles; kColumnWarps warps, `thread` among them.
template <int kHeadDim>
__device__ __forceinline__ void load_columns(const BackwardStep& step, const KeyBlock<kHeadDim>& block,
                                             int thread) {
  using Block = KeyBlock<kHeadDim>;
  constexpr int kThreadsHere = 32 * Block::kColumnWarps, kEach = Block::kQueries / kThreadsHere;
  const int group = step.heads / step.kv_heads, first_head = block.kv_head * group;
  Turn<Block::kStages> turn;
  for (int tile = block.query_tiles.first; tile <= block.query_tiles.last; ++tile) {
    const int first = tile * Block::kQueries;
    const Interval queries{first, min(first + Block::kQueries, step.query_count) - 1};
    const bool some_masked = !all_visible(step, queries, block.keys);
    for (int head = first_head; head < first_head + group; ++head, turn.advance()) {
      float lse[kEach], delta[kEach];
#pragma unroll
      for (int i = 0; i < kEach; ++i) {  // before the wait, whose time they need
        const int query = first + thread + i * kThreadsHere;
        const int64_t at = head * step.head_rows + query;
        lse[i] = query <= queries.last ? lse_log2(step.lse[at]) : INFINITY;
        delta[i] = query <= queries.last ? step.delta[at] : 0.0f;
      }
      barrier_wait(block.free(turn.stage), turn.parity ^ 1);
      QueryColumns<Block::kQueries>& columns = block.columns(turn.stage);
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
        columns.lse[thread + i * kThreadsHere] = lse[i];
        columns.delta[thread + i * kThreadsHere] = delta[i];
      }
      if (some_masked) {
#pragma unroll 1
        for (int column = thread; column < Block::kQueries; column += kThreadsHere) {
          const bool exists = first + column <= queries.last;
          columns.seen[column] = exists ? keys_seen(step, first + column) : Interval{0, -1};
        }
      }
      if (thread == 0) columns.some_masked = some_masked;
      warp_arrive(block.loaded(turn.stage));
    }
  }
}

/// Transposed scores to probabilities. The thread's rows are keys first_key and first_key + 8.
template <int kQueries>
__device__ __forceinline__ void column_probabilities(float (&scores)[kQueries / 2], float scale_log2,
                                                     const QueryColumns<kQueries>& columns, int first_key) {
  const int own_column = int(threadIdx.x % 4) * 2;
#pragma unroll
  for (int i = 0; i < kQueries / 2; i += 4) {
    const float2 lse = *reinterpret_cast<const float2*>(columns.lse + 2 * i + own_column);
    scores[i] = exp2_fast(fmaf(scores[i], scale_log2, -lse.x));
    scores[i + 1] = exp2_fast(fmaf(scores[i + 1], scale_log2, -lse.y));
    scores[i + 2] = exp2_fast(fmaf(scores[i + 2], scale_log2, -lse.x));
    scores[i + 3] = exp2_fast(fmaf(scores[i + 3], scale_log2, -lse.y));
  }
  if (!columns.some_masked) return;
#pragma unroll
  for (int i = 0; i < kQueries / 2; i += 4) {
    const int4 seen = *reinterpret_cast<const int4*>(columns.seen + 2 * i + own_column);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int key = first_key + 8 * half;
      float& even = scores[i + 2 * half];
      float& odd = scores[i + 2 * half + 1];
      even = seen.x <= key && key <= seen.y ? even : 0.0f;
      odd = seen.z <= key && key <= seen.w ? odd : 0.0f;
    }
  }
}

template <int kHeadDim>
__device__ __forceinline__ void compute_for_keys(const BackwardStep& step, const KeyBlock<kHeadDim>& block,
                                                 int warpgroup) {
  using Block = KeyBlock<kHeadDim>;
  constexpr int kQueries = Block::kQueries;
  const int first_row = block.keys.first + 64 * warpgroup, thread = int(threadIdx.x % kWarpgroup);
  const int own_key = first_row + thread / 32 * 16 + thread % 32 / 4, own_column = thread % 4 * 2;
  const uint32_t own_bytes = 64 * kSlabRowBytes * warpgroup;
  float dk[kHeadDim / 2] = {}, dv[kHeadDim / 2] = {};
  if (warpgroup == 1) pass_turn(warpgroup);
  barrier_wait(block.own_loaded(), 0);
  Turn<Block::kStages> turn;
  const int tiles = block.query_tiles.last - block.query_tiles.first + 1;
#pragma unroll 1
  for (int left = tiles * (step.heads / step.kv_heads); left > 0; --left, turn.advance()) {
    float scores[kQueries / 2], d_scores[kQueries / 2];
    const QueryColumns<kQueries>& columns = block.columns(turn.stage);
    barrier_wait(block.loaded(turn.stage), turn.parity);
    await_turn(warpgroup);
    multiply_fence();
    multiply_rows<kHeadDim, kOwnRows, kQueries>(scores, block.k() + own_bytes, block.q(turn.stage));
    multiply_commit();
    multiply_rows<kHeadDim, kOwnRows, kQueries>(d_scores, block.v() + own_bytes, block.d_output(turn.stage));
    multiply_commit();
    if (warpgroup == 0 || left > 1) pass_turn(warpgroup);
    multiply_wait<1>();
    pin(scores);
    column_probabilities(scores, step.scale_log2, columns, own_key);
    multiply_wait<0>();
    pin(d_scores);
    uint32_t packed[kQueries / 16][4], d_packed[kQueries / 16][4];
#pragma unroll
    for (int k = 0; k < kQueries / 16; ++k) {
      pack_fragment(packed[k], scores, k);
      pin(packed[k]);
#pragma unroll
      for (int i = 8 * k; i < 8 * k + 8; i += 4) {
        const float2 delta = *reinterpret_cast<const float2*>(columns.delta + 2 * i + own_column);
        d_scores[i] = scores[i] * (d_scores[i] - delta.x);
        d_scores[i + 1] = scores[i + 1] * (d_scores[i + 1] - delta.y);
        d_scores[i + 2] = scores[i + 2] * (d_scores[i + 2] - delta.x);
        d_scores[i + 3] = scores[i + 3] * (d_scores[i + 3] - delta.y);
      }
      pack_fragment(d_packed[k], d_scores, k);
      pin(d_packed[k]);
    }
    multiply_fence();
    add_product<kHeadDim, kQueries>(dv, packed, block.d_output(turn.stage));
    add_product<kHeadDim, kQueries>(dk, d_packed, block.q(turn.stage));
    multiply_commit();
    multiply_wait<0>();
    warp_arrive(block.free(turn.stage));
  }
  pin(dk);
  pin(dv);
  const int64_t matrix = int64_t(step.key_count) * kHeadDim;
  float* const to = step.dkv + block.kv_head * matrix;
  write_rows<kHeadDim>(step.write, to, first_row, step.key_count, step.scale, dk);
  write_rows<kHeadDim>(step.write, to + step.kv_heads * matrix, first_row, step.key_count, 1.0f, dv);
}

/// The gradients of keys that no query sees.
template <int kHeadDim>
__device__ __forceinline__ void clear_keys(const BackwardStep& step, Interval keys, int kv_head) {
  const int count = (keys.last - keys.first + 1) * kHeadDim;
  for (const int head : {kv_head, step.kv_heads + kv_head}) {
    float* const to = step.dkv + (int64_t(head) * step.key_count + keys.first) * kHeadDim;
    for (int i = int(threadIdx.x); i < count; i += kThreads) to[i] = 0;
  }
}

/// A block owns a tile of keys and values of one KV head, for all query heads that read it. In causal
/// attention the first tiles have most to do.
template <int kHeadDim>
__global__ void __launch_bounds__(kThreads, 1)
    key_gradients(const __grid_constant__ KeyMaps maps, const __grid_constant__ BackwardStep step) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ std::byte memory[];
  using Block = KeyBlock<kHeadDim>;
  const int first = int(blockIdx.x / step.kv_heads) * kOwnRows;
  const Interval keys{first, min(first + kOwnRows, step.key_count) - 1};
  std::byte* const begin = tiles_begin(memory);
  Block block{begin, shared_address(begin), int(blockIdx.x % step.kv_heads), keys, {}};
  if (threadIdx.x == 0) {
    block.init_barriers();
    load_own_keys(step, maps, block);  // on their way while it is found out who sees them
  }
  const Interval queries = queries_that_see(step, keys);
  if (queries.first > queries.last) {
    if (step.write == Write::set) clear_keys<kHeadDim>(step, keys, block.kv_head);
    if (threadIdx.x == 0) barrier_wait(block.own_loaded(), 0);
    return;
  }
  block.query_tiles = {queries.first / Block::kQueries, queries.last / Block::kQueries};
  __syncthreads();
  const int warpgroup = uniform(int(threadIdx.x / kWarpgroup));
  constexpr int kColumnsFrom = kWarpgroup - 32 * Block::kColumnWarps;
  if (warpgroup == 0) {
    shrink_registers<kLoaderRegisters>();
    if (threadIdx.x == 0) load_for_keys(step, maps, block);
    if (int(threadIdx.x) >= kColumnsFrom) load_columns(step, block, int(threadIdx.x) - kColumnsFrom);
  } else {
    grow_registers<kComputeRegisters>();
    compute_for_keys(step, block, warpgroup - 1);
  }
#endif
}

}  // namespace ringlet::cuda::wgmma
