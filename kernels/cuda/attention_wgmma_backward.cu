#include <cmath>
#include <cstddef>
#include <limits>
#include <numbers>

#include "kernels/cuda/attention.h"
#include "kernels/cuda/cuda_raii.h"
#include "kernels/cuda/wgmma_backward.cuh"

// Two kernels, so that every gradient has one owner and no sum depends on timing: one walks over the keys of a tile of
// queries (dq), one over the queries of a tile of keys (dk, dv). Both compute scores and probabilities anew: 7 products
// where one kernel would do with 5. In both, warpgroup 0 loads and two others compute 64 rows of the tile each. The
// gradients of the scores never leave the registers: as sums of one product they lie as the left operand of the next.

namespace ringlet::cuda::wgmma {
namespace {

constexpr int kThreads = 3 * kWarpgroup;
constexpr int kLoaderRegisters = 56, kComputeRegisters = 224;  // 56 + 2 * 224 of 3 * 168
constexpr int kComputeWarps = 8;
constexpr int kOwnRows = 128;  // of the tile that a block owns
constexpr int kOwnLoads = 2;   // of that tile: q and d_output, or k and v

/// The dynamic shared memory from its first place for a tile.
__device__ __forceinline__ std::byte* tiles_begin(std::byte* memory) {
  return memory + (kTileAlignment - shared_address(memory) % kTileAlignment) % kTileAlignment;
}

// ---- dq ----------------------------------------------------------------------------------------------------------

/// Shared memory: q, d_output of the tile; per stage k and v of a tile of keys; barriers.
template <int kHeadDim>
struct QueryBlock {
  static constexpr int kKeys = 128, kStages = kHeadDim == 64 ? 4 : 2;
  static constexpr int kTileBytes = kOwnRows * kHeadDim * 2;
  static constexpr int kBarriersAt = (2 + 2 * kStages) * kTileBytes;
  static constexpr int kBytes = kBarriersAt + (1 + 4 * kStages) * 8 + kTileAlignment;
  static_assert(kKeys == kOwnRows);

  uint32_t begin;
  int head;
  Interval queries, key_tiles;

  __device__ uint32_t q() const { return begin; }
  __device__ uint32_t d_output() const { return begin + kTileBytes; }
  __device__ uint32_t k(int stage) const { return begin + (2 + 2 * stage) * kTileBytes; }
  __device__ uint32_t v(int stage) const { return begin + (3 + 2 * stage) * kTileBytes; }
  __device__ uint32_t own_loaded() const { return begin + kBarriersAt; }
  __device__ uint32_t k_loaded(int stage) const { return own_loaded() + 8 + 32 * stage; }
  __device__ uint32_t v_loaded(int stage) const { return k_loaded(stage) + 8; }
  __device__ uint32_t k_free(int stage) const { return k_loaded(stage) + 16; }
  __device__ uint32_t v_free(int stage) const { return k_loaded(stage) + 24; }

  __device__ void init_barriers() const {
    barrier_init(own_loaded(), kOwnLoads);
    for (int stage = 0; stage < kStages; ++stage) {
      barrier_init(k_loaded(stage), 1);
      barrier_init(v_loaded(stage), 1);
      barrier_init(k_free(stage), kComputeWarps);
      barrier_init(v_free(stage), kComputeWarps);
    }
    barrier_init_fence();
  }
};

struct QueryMaps {
  CUtensorMap q, d_output, kv;
};

template <int kHeadDim>
__device__ __forceinline__ void load_for_queries(const BackwardStep& step, const QueryMaps& maps,
                                                 const QueryBlock<kHeadDim>& block) {
  const int kv_head = block.head / (step.heads / step.kv_heads);
  load_tile<kOwnRows, kHeadDim>(block.q(), maps.q, block.queries.first, block.head, block.own_loaded());
  load_head_tile<kOwnRows, kHeadDim>(block.d_output(), maps.d_output, block.queries.first, block.head,
                                     block.own_loaded());
  using Block = QueryBlock<kHeadDim>;
  Turn<Block::kStages> turn;
  for (int tile = block.key_tiles.last; tile >= block.key_tiles.first; --tile, turn.advance()) {
    const int row = tile * Block::kKeys;
    barrier_wait(block.k_free(turn.stage), turn.parity ^ 1);
    load_tile<Block::kKeys, kHeadDim>(block.k(turn.stage), maps.kv, row, kv_head, block.k_loaded(turn.stage));
    barrier_wait(block.v_free(turn.stage), turn.parity ^ 1);
    load_tile<Block::kKeys, kHeadDim>(block.v(turn.stage), maps.kv, row, step.kv_heads + kv_head,
                                     block.v_loaded(turn.stage));
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
__device__ __forceinline__ void row_probabilities(float (&scores)[kCount], float scale_log2, const QueryRows& rows,
                                                  int first_key) {
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
__device__ __forceinline__ void compute_for_queries(const BackwardStep& step, const QueryBlock<kHeadDim>& block,
                                                    int warpgroup) {
  constexpr int kKeys = QueryBlock<kHeadDim>::kKeys;
  const int first_row = block.queries.first + 64 * warpgroup, thread = int(threadIdx.x % kWarpgroup);
  const QueryRows rows(step, block.head, first_row + thread / 32 * 16 + thread % 32 / 4);
  const uint32_t own_bytes = 64 * kSlabRowBytes * warpgroup;
  float dq[kHeadDim / 2] = {};
  if (warpgroup == 1) pass_turn(warpgroup);
  barrier_wait(block.own_loaded(), 0);
  Turn<QueryBlock<kHeadDim>::kStages> turn;
#pragma unroll 1
  for (int tile = block.key_tiles.last; tile >= block.key_tiles.first; --tile, turn.advance()) {
    float scores[kKeys / 2], d_scores[kKeys / 2];
    barrier_wait(block.k_loaded(turn.stage), turn.parity);
    barrier_wait(block.v_loaded(turn.stage), turn.parity);
    await_turn(warpgroup);
    multiply_fence();
    multiply_rows<kHeadDim, kOwnRows, kKeys>(scores, block.q() + own_bytes, block.k(turn.stage));
    multiply_commit();
    multiply_rows<kHeadDim, kOwnRows, kKeys>(d_scores, block.d_output() + own_bytes, block.v(turn.stage));
    multiply_commit();
    if (warpgroup == 0 || tile > block.key_tiles.first) pass_turn(warpgroup);
    multiply_wait<1>();
    sums_arrived(scores);
    row_probabilities(scores, step.scale_log2, rows, tile * kKeys);
    multiply_wait<0>();
    sums_arrived(d_scores);
    warp_arrive(block.v_free(turn.stage));
    uint32_t packed[kKeys / 16][4];
#pragma unroll
    for (int k = 0; k < kKeys / 16; ++k) {
#pragma unroll
      for (int i = 8 * k; i < 8 * k + 8; ++i) d_scores[i] = scores[i] * (d_scores[i] - rows.delta[i / 2 % 2]);
      pack_fragment(packed[k], d_scores, k);
    }
    multiply_fence();
    add_product<kHeadDim, kKeys>(dq, packed, block.k(turn.stage));
    multiply_commit();
    multiply_wait<0>();
    warp_arrive(block.k_free(turn.stage));
  }
  sums_arrived(dq);
  add_to_rows<kHeadDim>(step.dq + block.head * step.head_rows * kHeadDim, first_row, step.query_count, step.scale, dq);
}

/// A block owns a tile of queries of one head. In causal attention the last tiles have most to do: they come first.
template <int kHeadDim>
__global__ void __launch_bounds__(kThreads, 1)
    query_gradients(const __grid_constant__ QueryMaps maps, const __grid_constant__ BackwardStep step) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ std::byte memory[];
  using Block = QueryBlock<kHeadDim>;
  const int tile = int((gridDim.x - 1 - blockIdx.x) / step.heads), first = tile * kOwnRows;
  const Interval queries{first, min(first + kOwnRows, step.query_count) - 1};
  const Interval keys{first_key_seen(step, queries.first), last_key_seen(step, queries.last)};
  if (keys.first > keys.last) return;
  const Block block{shared_address(tiles_begin(memory)), int(blockIdx.x % step.heads), queries,
                    {keys.first / Block::kKeys, keys.last / Block::kKeys}};
  if (threadIdx.x == 0) block.init_barriers();
  __syncthreads();
  const int warpgroup = int(threadIdx.x / kWarpgroup);
  if (warpgroup == 0) {
    shrink_registers<kLoaderRegisters>();
    if (threadIdx.x == 0) load_for_queries(step, maps, block);
  } else {
    grow_registers<kComputeRegisters>();
    compute_for_queries(step, block, warpgroup - 1);
  }
#endif
}

// ---- dk, dv ------------------------------------------------------------------------------------------------------

/// What a tile of queries needs beside q and d_output, for the columns of the transposed scores.
template <int kQueries>
struct QueryColumns {
  float lse[kQueries];  // times log2(e)
  float delta[kQueries];
  Interval seen[kQueries];  // only where some_masked
  int some_masked;
};

/// Shared memory: k, v of the tile; per stage q, d_output of a tile of queries; QueryColumns per stage; barriers.
template <int kHeadDim>
struct KeyBlock {
  static constexpr int kQueries = kHeadDim == 64 ? 128 : 64;  // what the registers hold beside dk and dv
  static constexpr int kStages = 3;
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

/// Tile by tile upwards, within a tile head by head; one thread.
template <int kHeadDim>
__device__ __forceinline__ void load_for_keys(const BackwardStep& step, const KeyMaps& maps,
                                              const KeyBlock<kHeadDim>& block) {
  using Block = KeyBlock<kHeadDim>;
  load_tile<kOwnRows, kHeadDim>(block.k(), maps.kv, block.keys.first, block.kv_head, block.own_loaded());
  load_tile<kOwnRows, kHeadDim>(block.v(), maps.kv, block.keys.first, step.kv_heads + block.kv_head,
                                block.own_loaded());
  const int group = step.heads / step.kv_heads, first_head = block.kv_head * group;
  Turn<Block::kStages> turn;
  for (int tile = block.query_tiles.first; tile <= block.query_tiles.last; ++tile) {
    for (int head = first_head; head < first_head + group; ++head, turn.advance()) {
      const uint32_t loaded = block.loaded(turn.stage);
      barrier_wait(block.free(turn.stage), turn.parity ^ 1);
      load_tile<Block::kQueries, kHeadDim>(block.q(turn.stage), maps.q, tile * Block::kQueries, head, loaded);
      load_head_tile<Block::kQueries, kHeadDim>(block.d_output(turn.stage), maps.d_output, tile * Block::kQueries,
                                                head, loaded);
    }
  }
}

/// The columns of the same tiles; kColumnWarps warps, `thread` among them.
template <int kHeadDim>
__device__ __forceinline__ void load_columns(const BackwardStep& step, const KeyBlock<kHeadDim>& block, int thread) {
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
  const int group = step.heads / step.kv_heads;
#pragma unroll 1
  for (int left = (block.query_tiles.last - block.query_tiles.first + 1) * group; left > 0; --left, turn.advance()) {
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
    sums_arrived(scores);
    column_probabilities(scores, step.scale_log2, columns, own_key);
    multiply_wait<0>();
    sums_arrived(d_scores);
    uint32_t packed[kQueries / 16][4], d_packed[kQueries / 16][4];
#pragma unroll
    for (int k = 0; k < kQueries / 16; ++k) {
      pack_fragment(packed[k], scores, k);
#pragma unroll
      for (int i = 8 * k; i < 8 * k + 8; i += 4) {
        const float2 delta = *reinterpret_cast<const float2*>(columns.delta + 2 * i + own_column);
        d_scores[i] = scores[i] * (d_scores[i] - delta.x);
        d_scores[i + 1] = scores[i + 1] * (d_scores[i + 1] - delta.y);
        d_scores[i + 2] = scores[i + 2] * (d_scores[i + 2] - delta.x);
        d_scores[i + 3] = scores[i + 3] * (d_scores[i + 3] - delta.y);
      }
      pack_fragment(d_packed[k], d_scores, k);
    }
    multiply_fence();
    add_product<kHeadDim, kQueries>(dv, packed, block.d_output(turn.stage));
    add_product<kHeadDim, kQueries>(dk, d_packed, block.q(turn.stage));
    multiply_commit();
    multiply_wait<0>();
    warp_arrive(block.free(turn.stage));
  }
  sums_arrived(dk);
  sums_arrived(dv);
  const int64_t matrix = int64_t(step.key_count) * kHeadDim;
  add_to_rows<kHeadDim>(step.dkv + block.kv_head * matrix, first_row, step.key_count, step.scale, dk);
  add_to_rows<kHeadDim>(step.dkv + (step.kv_heads + block.kv_head) * matrix, first_row, step.key_count, 1.0f, dv);
}

/// A block owns a tile of keys and values of one KV head, for all query heads that read it. In causal attention the
/// first tiles have most to do.
template <int kHeadDim>
__global__ void __launch_bounds__(kThreads, 1)
    key_gradients(const __grid_constant__ KeyMaps maps, const __grid_constant__ BackwardStep step) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ std::byte memory[];
  using Block = KeyBlock<kHeadDim>;
  const int first = int(blockIdx.x / step.kv_heads) * kOwnRows;
  const Interval keys{first, min(first + kOwnRows, step.key_count) - 1};
  const Interval queries = queries_that_see(step, keys);
  if (queries.first > queries.last) return;
  std::byte* const begin = tiles_begin(memory);
  const Block block{begin, shared_address(begin), int(blockIdx.x % step.kv_heads), keys,
                    {queries.first / Block::kQueries, queries.last / Block::kQueries}};
  if (threadIdx.x == 0) block.init_barriers();
  __syncthreads();
  const int warpgroup = int(threadIdx.x / kWarpgroup), columns_from = kWarpgroup - 32 * Block::kColumnWarps;
  if (warpgroup == 0) {
    shrink_registers<kLoaderRegisters>();
    if (threadIdx.x == 0) load_for_keys(step, maps, block);
    if (int(threadIdx.x) >= columns_from) load_columns(step, block, int(threadIdx.x) - columns_from);
  } else {
    grow_registers<kComputeRegisters>();
    compute_for_keys(step, block, warpgroup - 1);
  }
#endif
}

// ---- host --------------------------------------------------------------------------------------------------------

template <class Kernel, class Maps>
void launch(Kernel kernel, int64_t blocks, int shared_bytes, cudaStream_t stream, const Maps& maps,
            const BackwardStep& step) {
  CHECK(blocks <= std::numeric_limits<int32_t>::max(), "attention of ", blocks, " tiles");
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes));
  kernel<<<unsigned(blocks), kThreads, unsigned(shared_bytes), stream>>>(maps, step);
  check_cuda(cudaGetLastError());
}

int64_t own_tiles(int64_t rows) { return (rows + kOwnRows - 1) / kOwnRows; }

template <int kHeadDim>
void launch_both(cudaStream_t stream, const AttentionStep& step, const Tensor& q, const Tensor& kv,
                 const AttentionGradient& gradient, const Tensor& dq, const Tensor& dkv) {
  const auto [heads, kv_heads, head_dim] = step.shape;
  const Piece &queries = step.queries, &keys = step.keys;
  const int64_t head_rows = q.shape[1], first_row = queries.first_row;
  CHECK(head_rows < std::numeric_limits<int32_t>::max() - kOwnRows &&
            keys.row_count < std::numeric_limits<int32_t>::max() - kOwnRows,
        "attention of ", head_rows, " queries and ", keys.row_count, " keys");
  const auto query_map = [&](int tile_rows) {
    return make_tensor_map(q.as<Bf16>().data() + first_row * kHeadDim,
                           {heads, queries.row_count, kHeadDim, head_rows * kHeadDim, tile_rows});
  };
  const auto gradient_map = [&](int tile_rows) {
    const int64_t width = heads * kHeadDim;
    return make_tensor_map(gradient.d_output.as<Bf16>().data() + first_row * width,
                           {1, queries.row_count, width, queries.row_count * width, tile_rows});
  };
  const CUtensorMap key_map = make_tensor_map(
      kv.as<Bf16>().data(), {2 * kv_heads, keys.row_count, kHeadDim, keys.row_count * kHeadDim, kOwnRows});
  const float scale = 1 / std::sqrt(float(kHeadDim));
  const BackwardStep parameters{
      .first_visible = step.first_visible.as<int64_t>().data() + first_row,
      .lse = gradient.lse.as<float>().data() + first_row,
      .delta = gradient.delta.as<float>().data() + first_row,
      .dq = dq.as<float>().data() + first_row * kHeadDim,
      .dkv = dkv.as<float>().data(),
      .query_position = queries.first_position,
      .query_stride = queries.stride,
      .key_position = keys.first_position,
      .key_stride = keys.stride,
      .head_rows = head_rows,
      .query_count = int(queries.row_count),
      .key_count = int(keys.row_count),
      .heads = int(heads),
      .kv_heads = int(kv_heads),
      .scale = scale,
      .scale_log2 = scale * std::numbers::log2e_v<float>,
  };
  using Queries = QueryBlock<kHeadDim>;
  using Keys = KeyBlock<kHeadDim>;
  launch(query_gradients<kHeadDim>, own_tiles(queries.row_count) * heads, Queries::kBytes, stream,
         QueryMaps{query_map(kOwnRows), gradient_map(kOwnRows), key_map}, parameters);
  launch(key_gradients<kHeadDim>, own_tiles(keys.row_count) * kv_heads, Keys::kBytes, stream,
         KeyMaps{query_map(Keys::kQueries), gradient_map(Keys::kQueries), key_map}, parameters);
}

}  // namespace

void attention_backward(cudaStream_t stream, const AttentionStep& step, const Tensor& q, const Tensor& kv,
                        const AttentionGradient& gradient, const Tensor& dq, const Tensor& dkv) {
  const int64_t head_dim = step.shape.head_dim;
  CHECK(q.dtype == Dtype::bf16 && (head_dim == 64 || head_dim == 128), "attention by wgmma: ", name_of(q.dtype),
        ", head_dim ", head_dim);
  if (step.queries.row_count == 0 || step.keys.row_count == 0) return;
  if (head_dim == 64) launch_both<64>(stream, step, q, kv, gradient, dq, dkv);
  else launch_both<128>(stream, step, q, kv, gradient, dq, dkv);
}

}  // namespace ringlet::cuda::wgmma
