#pragma once

#include <cstddef>

#include "kernels/cuda/wgmma_backward.cuh"

namespace ringlet::cuda::wgmma {

/// Shared memory: q, d_output of the tile; k of some tiles of keys, v of some; barriers.
template <int kHeadDim>
struct QueryBlock {
  static constexpr int kKeys = 128;
  // As many as fit. k is needed to the end of a tile, v not so long.
  static constexpr int kKeyStages = kHeadDim == 64 ? 4 : 3, kValueStages = kHeadDim == 64 ? 4 : 2;
  static constexpr int kTileBytes = kOwnRows * kHeadDim * 2;
  static constexpr int kBarriersAt = (2 + kKeyStages + kValueStages) * kTileBytes;
  static constexpr int kBytes = kBarriersAt + (1 + 2 * kKeyStages + 2 * kValueStages) * 8 + kTileAlignment;
  static_assert(kKeys == kOwnRows);

  uint32_t begin;
  int head;
  Interval queries, key_tiles;

  __device__ uint32_t q() const { return begin; }
  __device__ uint32_t d_output() const { return begin + kTileBytes; }
  __device__ uint32_t k(int stage) const { return begin + (2 + stage) * kTileBytes; }
  __device__ uint32_t v(int stage) const { return k(kKeyStages + stage); }
  __device__ uint32_t own_loaded() const { return begin + kBarriersAt; }
  __device__ uint32_t k_loaded(int stage) const { return own_loaded() + 8 + 16 * stage; }
  __device__ uint32_t k_free(int stage) const { return k_loaded(stage) + 8; }
  __device__ uint32_t v_loaded(int stage) const { return k_loaded(kKeyStages + stage); }
  __device__ uint32_t v_free(int stage) const { return v_loaded(stage) + 8; }

  __device__ void init_barriers() const {
    barrier_init(own_loaded(), kOwnLoads);
    for (int stage = 0; stage < kKeyStages + kValueStages; ++stage) {  // those of v follow those of k
      barrier_init(k_loaded(stage), 1);
      barrier_init(k_free(stage), kComputeWarps);
    }
    barrier_init_fence();
  }
};

struct QueryMaps {
  CUtensorMap q, d_output, kv;
};

template <int kHeadDim>
__device__ __forceinline__ void load_own_queries(const QueryMaps& maps, const QueryBlock<kHeadDim>& block) {
  load_tile<kOwnRows, kHeadDim>(block.q(), maps.q, block.queries.first, block.head, block.own_loaded());
  load_head_tile<kOwnRows, kHeadDim>(block.d_output(), maps.d_output, block.queries.first, block.head,
                                     block.own_loaded());
}

template <int kHeadDim>
__device__ __forceinline__ void load_for_queries(const BackwardStep& step, const QueryMaps& maps,
                                                 const QueryBlock<kHeadDim>& block) {
  const int kv_head = block.head / (step.heads / step.kv_heads);
  using Block = QueryBlock<kHeadDim>;
  Turn<Block::kKeyStages> k;
  Turn<Block::kValueStages> v;
  for (int tile = block.key_tiles.last; tile >= block.key_tiles.first; --tile, k.advance(), v.advance()) {
    const int row = tile * Block::kKeys, v_head = step.kv_heads + kv_head;
    barrier_wait(block.k_free(k.stage), k.parity ^ 1);
    load_tile<Block::kKeys, kHeadDim>(block.k(k.stage), maps.kv, row, kv_head, block.k_loaded(k.stage));
    barrier_wait(block.v_free(v.stage), v.parity ^ 1);
    load_tile<Block::kKeys, kHeadDim>(block.v(v.stage), maps.kv, row, v_head, block.v_loaded(v.stage));
  }
}

/// Two rows of the scores' fragment, 8 apart: what a thread knows of their queries.
struct QueryRows {
  float lse[2], delta[2];  // lse times log2(e)
  Interval seen[2];
  Interval seen_by_all;  // queries of the warp

  __device__ QueryRows(const BackwardStep& step, int head, int row) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int query = row + 8 * half;
      const bool exists = query < step.query_count;
      const int64_t at = head * step.head_rows + query;
      lse[half] = exists ? lse_log2(step.lse[at]) : INFINITY;
      delta[half] = exists ? step.delta[at] : 0.0f;
      seen[half] = exists ? keys_seen(step, query) : Interval{0, step.key_count - 1};
    }
    seen_by_all.first = __reduce_max_sync(0xffffffffu, max(seen[0].first, seen[1].first));
    seen_by_all.last = __reduce_min_sync(0xffffffffu, min(seen[0].last, seen[1].last));
  }
};

/// Scores of a thread's rows to probabilities. Keys from first_key.
template <int kCount>
__device__ __forceinline__ void row_probabilities(float (&scores)[kCount], float scale_log2,
                                                  const QueryRows& rows, int first_key) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) scores[i] = exp2_fast(fmaf(scores[i], scale_log2, -rows.lse[i / 2 % 2]));
  if (rows.seen_by_all.first <= first_key && first_key + kCount * 2 - 1 <= rows.seen_by_all.last) return;
  const int own_first = first_key + int(threadIdx.x % 4) * 2;
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    const Interval& seen = rows.seen[i / 2 % 2];
    const int column = i / 4 * 8 + i % 2;
    const bool visible = column >= seen.first - own_first && column <= seen.last - own_first;
    scores[i] = visible ? scores[i] : 0.0f;
  }
}

template <int kHeadDim>
__device__ __forceinline__ void compute_for_queries(const BackwardStep& step,
                                                    const QueryBlock<kHeadDim>& block, int warpgroup) {
  using Block = QueryBlock<kHeadDim>;
  constexpr int kKeys = Block::kKeys;
  const int first_row = block.queries.first + 64 * warpgroup, thread = int(threadIdx.x % kWarpgroup);
  const QueryRows rows(step, block.head, first_row + thread / 32 * 16 + thread % 32 / 4);
  const uint32_t own_bytes = 64 * kSlabRowBytes * warpgroup;
  float dq[kHeadDim / 2] = {};
  if (warpgroup == 1) pass_turn(warpgroup);
  barrier_wait(block.own_loaded(), 0);
  Turn<Block::kKeyStages> k;
  Turn<Block::kValueStages> v;
#pragma unroll 1
  for (int tile = block.key_tiles.last; tile >= block.key_tiles.first; --tile, k.advance(), v.advance()) {
    float scores[kKeys / 2], d_scores[kKeys / 2];
    barrier_wait(block.k_loaded(k.stage), k.parity);
    barrier_wait(block.v_loaded(v.stage), v.parity);
    await_turn(warpgroup);
    multiply_fence();
    multiply_rows<kHeadDim, kOwnRows, kKeys>(scores, block.q() + own_bytes, block.k(k.stage));
    multiply_commit();
    multiply_rows<kHeadDim, kOwnRows, kKeys>(d_scores, block.d_output() + own_bytes, block.v(v.stage));
    multiply_commit();
    if (warpgroup == 0 || tile > block.key_tiles.first) pass_turn(warpgroup);
    multiply_wait<1>();
    pin(scores);
    row_probabilities(scores, step.scale_log2, rows, tile * kKeys);
    multiply_wait<0>();
    pin(d_scores);
    warp_arrive(block.v_free(v.stage));
    uint32_t packed[kKeys / 16][4];
#pragma unroll
    for (int part = 0; part < kKeys / 16; ++part) {
#pragma unroll
      for (int i = 8 * part; i < 8 * part + 8; ++i) {
        d_scores[i] = scores[i] * (d_scores[i] - rows.delta[i / 2 % 2]);
      }
      pack_fragment(packed[part], d_scores, part);
      pin(packed[part]);
    }
    multiply_fence();
    add_product<kHeadDim, kKeys>(dq, packed, block.k(k.stage));
    multiply_commit();
    multiply_wait<0>();
    warp_arrive(block.k_free(k.stage));
  }
  pin(dq);
  float* const to = step.dq + block.head * step.head_rows * kHeadDim;
  write_rows<kHeadDim>(Write::add, to, first_row, step.query_count, step.scale, dq);
}

/// A block owns a tile of queries of one head. In causal attention the last tiles have most to do: they come
/// first.
template <int kHeadDim>
__global__ void __launch_bounds__(kThreads, 1)
    query_gradients(const __grid_constant__ QueryMaps maps, const __grid_constant__ BackwardStep step) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ std::byte memory[];
  using Block = QueryBlock<kHeadDim>;
  const int tile = int((gridDim.x - 1 - blockIdx.x) / step.heads), first = tile * kOwnRows;
  const Interval queries{first, min(first + kOwnRows, step.query_count) - 1};
  Block block{shared_address(tiles_begin(memory)), int(blockIdx.x % step.heads), queries, {}};
  if (threadIdx.x == 0) {
    block.init_barriers();
    load_own_queries(maps, block);  // on their way while it is found out what they see
  }
  const Interval keys{first_key_seen(step, queries.first), last_key_seen(step, queries.last)};
  if (keys.first > keys.last) {
    if (threadIdx.x == 0) barrier_wait(block.own_loaded(), 0);
    return;
  }
  block.key_tiles = {keys.first / Block::kKeys, keys.last / Block::kKeys};
  __syncthreads();
  const int warpgroup = uniform(int(threadIdx.x / kWarpgroup));
  if (warpgroup == 0) {
    shrink_registers<kLoaderRegisters>();
    if (threadIdx.x == 0) load_for_queries(step, maps, block);
  } else {
    grow_registers<kComputeRegisters>();
    compute_for_queries(step, block, warpgroup - 1);
  }
#endif
}

}  // namespace ringlet::cuda::wgmma
