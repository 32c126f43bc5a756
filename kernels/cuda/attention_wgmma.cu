#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>

#include "kernels/cuda/attention.h"
#include "kernels/cuda/wgmma.cuh"

// Softmax and matrix products overlap in two ways (arXiv:2407.08608): the warpgroups take turns at issuing products,
// and each weighs the scores of one tile while its product with the values of the tile before is under way.

namespace ringlet::cuda::wgmma {
namespace {

constexpr int kStages = 2;  // key tiles, and value tiles, in shared memory
constexpr int kKeys = 128;  // of a tile
constexpr float kInfinity = std::numeric_limits<float>::infinity();

/// A block's work and its shared memory. The first warpgroup loads; each other one owns 64 queries.
template <int kHeadDim>
struct Plan {
  static constexpr int kConsumers = kHeadDim == 64 ? 3 : 2;
  static constexpr int kQueries = 64 * kConsumers;
  static constexpr int kThreads = kWarpgroup * (1 + kConsumers);
  // Together they are what the block is launched with.
  static constexpr int kProducerRegisters = kConsumers == 3 ? 32 : 24;
  static constexpr int kConsumerRegisters = kConsumers == 3 ? 160 : 240;
  static constexpr int kTileBytes = kKeys * kHeadDim * 2;
  static constexpr int kKeyOffset = kQueries * kHeadDim * 2;
  static constexpr int kValueOffset = kKeyOffset + kStages * kTileBytes;
  static constexpr int kBarrierOffset = kValueOffset + kStages * kTileBytes;
  static constexpr int kVisibleOffset = kBarrierOffset + 8 * (1 + 4 * kStages);
  static constexpr int kBytes = kVisibleOffset + 8 * kQueries;
};

/// Half-open: the keys that a row sees, counted from the start of the first key tile.
struct Visible {
  int begin, end;
};

struct Parameters {
  // Of the step's first row and first head; heads are all_rows apart.
  const int64_t* first_visible;
  float *output, *maximum, *sum;
  int64_t all_rows;
  Piece queries, keys;
  int rows_before;  // that the first key tile lacks
  int heads, kv_heads;
  int group_heads;  // heads whose keys and values fit in the L2 cache together
  float scale;      // log2(e) / sqrt(head_dim)
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

/// Key rows with a position below `position`, rows that the first tile lacks included.
__device__ __forceinline__ int keys_below(const Parameters& step, int64_t position) {
  const int64_t stride = step.keys.stride, distance = position - step.keys.first_position + stride - 1;
  const int64_t rows = distance < 0 ? 0 : stride == 1 ? distance : distance / stride;
  return int(rows < step.keys.row_count ? rows : step.keys.row_count) + step.rows_before;
}

/// The query tile of this block. Later queries see more keys: they go first, so that blocks end together.
struct Work {
  int head, first_query;
  __device__ __forceinline__ Work(const Parameters& step, int queries) {
    const int tiles = int((step.queries.row_count + queries - 1) / queries);
    const int group = int(blockIdx.x) / (step.group_heads * tiles);
    const int index = int(blockIdx.x) % (step.group_heads * tiles);
    const int heads = min(step.group_heads, step.heads - group * step.group_heads);
    head = group * step.group_heads + index % heads;
    first_query = (tiles - 1 - index / heads) * queries;
  }
};

/// Addresses in shared memory.
template <int kHeadDim>
struct Shared {
  uint32_t base;
  using P = Plan<kHeadDim>;
  __device__ uint32_t queries() const { return base; }
  __device__ uint32_t keys(int stage) const { return base + P::kKeyOffset + stage * P::kTileBytes; }
  __device__ uint32_t values(int stage) const { return base + P::kValueOffset + stage * P::kTileBytes; }
  __device__ uint32_t queries_full() const { return base + P::kBarrierOffset; }
  __device__ uint32_t keys_full(int stage) const { return queries_full() + 8 * (1 + stage); }
  __device__ uint32_t keys_empty(int stage) const { return keys_full(kStages + stage); }
  __device__ uint32_t values_full(int stage) const { return keys_full(2 * kStages + stage); }
  __device__ uint32_t values_empty(int stage) const { return keys_full(3 * kStages + stage); }
};

/// One thread loads the queries and then, from the last tile down, keys and values.
template <int kHeadDim>
__device__ __forceinline__ void produce(const CUtensorMap& q, const CUtensorMap& kv, const Parameters& step, const Work& work,
                        const Shared<kHeadDim>& shared, int first_tile, int tile_end) {
  constexpr int kQueries = Plan<kHeadDim>::kQueries;
  const int kv_head = work.head / (step.heads / step.kv_heads);
  load_tile<kQueries, kHeadDim>(shared.queries(), q, work.first_query, work.head, shared.queries_full());
  Turn<kStages> turn;
  for (int tile = tile_end - 1; tile >= first_tile; --tile) {
    const int row = tile * kKeys - step.rows_before;
    barrier_wait(shared.keys_empty(turn.stage), turn.parity ^ 1);
    load_tile<kKeys, kHeadDim>(shared.keys(turn.stage), kv, row, kv_head, shared.keys_full(turn.stage));
    barrier_wait(shared.values_empty(turn.stage), turn.parity ^ 1);
    load_tile<kKeys, kHeadDim>(shared.values(turn.stage), kv, row, step.kv_heads + kv_head,
                               shared.values_full(turn.stage));
    turn.advance();
  }
}

/// A warpgroup's 64 queries: scores, softmax, output. Of its two rows, 8 apart, a thread holds every fourth pair of
/// columns; see the fragment of d in wgmma_multiply.cuh.
template <int kHeadDim>
struct Consumer {
  using P = Plan<kHeadDim>;
  const Shared<kHeadDim>& shared;
  int index;  // among the consumers
  float scale;
  Visible visible[2];  // to its rows
  Visible all_see;     // what every query of the block sees: tiles within need no mask
  float output[kHeadDim / 2];
  float maximum[2], sum[2], rescale[2];
  uint32_t weights[kKeys / 4];  // a tile's, packed as left operands

  __device__ __forceinline__ void start_scores(float (&scores)[kKeys / 2], int stage) const {
    const uint64_t q = operand(shared.queries() + index * 64 * kSlabRowBytes, P::kQueries);
    const uint64_t k = operand(shared.keys(stage), kKeys);
#pragma unroll
    for (int i = 0; i < kHeadDim / 16; ++i) {
      multiply<Major::k, Major::k>(scores, q + step_k(i, P::kQueries), k + step_k(i, kKeys), i > 0);
    }
    multiply_commit();
  }

  __device__ __forceinline__ void start_output(int stage) {
    const uint64_t v = operand(shared.values(stage), kKeys);
#pragma unroll
    for (int i = 0; i < kKeys / 16; ++i) {
      const uint32_t a[4] = {weights[4 * i], weights[4 * i + 1], weights[4 * i + 2], weights[4 * i + 3]};
      multiply<Major::mn>(output, a, v + step_mn(i), 1);
    }
    multiply_commit();
  }

  /// Scores of keys that the row does not see become -infinity.
  __device__ __forceinline__ void mask(float (&scores)[kKeys / 2], int tile) const {
    if (tile * kKeys >= all_see.begin && (tile + 1) * kKeys <= all_see.end) return;
    const int first_column = tile * kKeys + int(threadIdx.x) % 4 * 2;
#pragma unroll
    for (int i = 0; i < kKeys / 2; ++i) {
      const int key = first_column + i / 4 * 8 + i % 2;
      const Visible& seen = visible[i / 2 % 2];
      if (key < seen.begin || key >= seen.end) scores[i] = -kInfinity;
    }
  }

  /// Scores to weights relative to the new maximum; updates maximum and sum, sets rescale. The four threads of a row
  /// agree on the sum after each tile: so it does not matter between which tiles a step ends.
  __device__ __forceinline__ void weigh(float (&scores)[kKeys / 2]) {
    float shift[2], total[2] = {0, 0};
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      float highest = scores[2 * row];
#pragma unroll
      for (int i = 0; i < kKeys / 2; i += 4) {
        highest = fmaxf(highest, fmaxf(scores[i + 2 * row], scores[i + 2 * row + 1]));
      }
      highest = fmaxf(highest, __shfl_xor_sync(~0u, highest, 1));
      highest = fmaxf(highest, __shfl_xor_sync(~0u, highest, 2));
      const float before = maximum[row];
      maximum[row] = fmaxf(before, highest * scale);
      // Two infinities must not meet.
      shift[row] = maximum[row] == -kInfinity ? 0 : maximum[row];
      rescale[row] = exp2_fast(before - shift[row]);
    }
#pragma unroll
    for (int i = 0; i < kKeys / 2; ++i) {
      const int row = i / 2 % 2;
      scores[i] = exp2_fast(fmaf(scores[i], scale, -shift[row]));
      total[row] += scores[i];
    }
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      total[row] += __shfl_xor_sync(~0u, total[row], 1);
      total[row] += __shfl_xor_sync(~0u, total[row], 2);
      sum[row] = fmaf(sum[row], rescale[row], total[row]);
    }
  }

  __device__ __forceinline__ void pack(const float (&scores)[kKeys / 2]) {
#pragma unroll
    for (int i = 0; i < kKeys / 4; ++i) weights[i] = pack_bf16(scores[2 * i], scores[2 * i + 1]);
  }

  __device__ __forceinline__ void rescale_output() {
#pragma unroll
    for (int i = 0; i < kHeadDim / 2; ++i) output[i] *= rescale[i / 2 % 2];
  }

  __device__ __forceinline__ void load(const Parameters& step, const Work& work, int query) {
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      const bool there = query + 8 * row < step.queries.row_count;
      const int64_t at = work.head * step.all_rows + query + 8 * row;
      const float* const from = step.output + at * kHeadDim + threadIdx.x % 4 * 2;
      maximum[row] = there ? step.maximum[at] : -kInfinity;
      sum[row] = there ? step.sum[at] : 0;
#pragma unroll
      for (int i = 0; i < kHeadDim / 8; ++i) {
        const float2 pair = there ? *reinterpret_cast<const float2*>(from + 8 * i) : float2{0, 0};
        output[4 * i + 2 * row] = pair.x;
        output[4 * i + 2 * row + 1] = pair.y;
      }
    }
  }

  __device__ __forceinline__ void store(const Parameters& step, const Work& work, int query) const {
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      if (query + 8 * row >= step.queries.row_count) continue;
      const int64_t at = work.head * step.all_rows + query + 8 * row;
      float* const to = step.output + at * kHeadDim + threadIdx.x % 4 * 2;
#pragma unroll
      for (int i = 0; i < kHeadDim / 8; ++i) {
        *reinterpret_cast<float2*>(to + 8 * i) = {output[4 * i + 2 * row], output[4 * i + 2 * row + 1]};
      }
      if (threadIdx.x % 4 == 0) {
        step.maximum[at] = maximum[row];
        step.sum[at] = sum[row];
      }
    }
  }
};

/// One arrival per warp: each has waited for its own products.
__device__ __forceinline__ void release(uint32_t barrier) {
  if (threadIdx.x % 32 == 0) barrier_arrive(barrier);
}

/// Folds all key tiles, from the last one down, into the state in registers.
template <int kHeadDim>
__device__ __forceinline__ void consume(Consumer<kHeadDim>& self, int first_tile, int tile_end) {
  constexpr int kConsumers = Plan<kHeadDim>::kConsumers, kTwo = 2 * kWarpgroup;
  const Shared<kHeadDim>& shared = self.shared;
  const int own_turn = 1 + self.index, next_turn = 1 + (self.index + 1) % kConsumers;

  Turn<kStages> turn;
  int tile = tile_end - 1;
  barrier_wait(shared.queries_full(), 0);
  barrier_wait(shared.keys_full(0), 0);
  {
    float scores[kKeys / 2];
    multiply_fence();
    self.start_scores(scores, 0);
    multiply_wait<0>();
    pin(scores);
    release(shared.keys_empty(0));
    self.mask(scores, tile);
    self.weigh(scores);
    self.pack(scores);
    self.rescale_output();
  }
  // The last of the round lets the first begin, and in the end nobody waits for it.
  if (self.index == kConsumers - 1 && tile > first_tile) named_barrier_arrive(next_turn, kTwo);
#pragma unroll 1
  for (--tile; tile >= first_tile; --tile) {
    const Turn<kStages> before = turn;
    turn.advance();
    float scores[kKeys / 2];
    barrier_wait(shared.keys_full(turn.stage), turn.parity);
    named_barrier_sync(own_turn, kTwo);
    pin(self.weights);
    pin(self.output);
    multiply_fence();
    self.start_scores(scores, turn.stage);
    barrier_wait(shared.values_full(before.stage), before.parity);
    multiply_fence();  // again: behind a loop the compiler does not see the first one, and would serialize
    self.start_output(before.stage);
    if (self.index < kConsumers - 1 || tile > first_tile) named_barrier_arrive(next_turn, kTwo);
    multiply_wait<1>();
    pin(scores);
    release(shared.keys_empty(turn.stage));
    self.mask(scores, tile);
    self.weigh(scores);
    // Long there. Without a branch the compiler would wait for the products first and weigh after that.
    pin(scores);
    barrier_wait(shared.values_full(before.stage), before.parity);
    multiply_wait<0>();
    pin(self.output);
    release(shared.values_empty(before.stage));
    self.pack(scores);
    self.rescale_output();
  }
  barrier_wait(shared.values_full(turn.stage), turn.parity);
  pin(self.weights);
  pin(self.output);
  multiply_fence();
  self.start_output(turn.stage);
  multiply_wait<0>();
  pin(self.output);
}

#endif

template <int kHeadDim>
__global__ void __launch_bounds__(Plan<kHeadDim>::kThreads, 1)
    forward(const __grid_constant__ CUtensorMap q, const __grid_constant__ CUtensorMap kv,
            const __grid_constant__ Parameters step) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  using P = Plan<kHeadDim>;
  extern __shared__ unsigned char memory[];
  unsigned char* const aligned = memory + (-shared_address(memory)) % kTileAlignment;
  const Shared<kHeadDim> shared{shared_address(aligned)};
  Visible* const visible = reinterpret_cast<Visible*>(aligned + P::kVisibleOffset);
  const Work work(step, P::kQueries);
  const int thread = int(threadIdx.x), last = int(step.queries.row_count) - 1;
  if (thread < P::kQueries) {  // rows beyond the last see what it sees: they are not stored
    const int query = min(work.first_query + thread, last);
    visible[thread] = {keys_below(step, step.first_visible[query]),
                       keys_below(step, step.queries.first_position + query * step.queries.stride + 1)};
  }
  if (thread == 0) {
    barrier_init(shared.queries_full(), 1);
    for (int stage = 0; stage < kStages; ++stage) {
      barrier_init(shared.keys_full(stage), 1);
      barrier_init(shared.values_full(stage), 1);
      barrier_init(shared.keys_empty(stage), 4 * P::kConsumers);
      barrier_init(shared.values_empty(stage), 4 * P::kConsumers);
    }
    barrier_init_fence();
  }
  __syncthreads();

  // Both ends rise with the query.
  const Visible somebody_sees{visible[0].begin, visible[P::kQueries - 1].end};
  const Visible all_see{visible[P::kQueries - 1].begin, visible[0].end};
  if (somebody_sees.begin >= somebody_sees.end) return;
  const int first_tile = somebody_sees.begin / kKeys, tile_end = (somebody_sees.end - 1) / kKeys + 1;
  if (thread < kWarpgroup) {
    shrink_registers<P::kProducerRegisters>();
    if (thread == 0) produce(q, kv, step, work, shared, first_tile, tile_end);
  } else {
    grow_registers<P::kConsumerRegisters>();
    const int index = __shfl_sync(~0u, thread / kWarpgroup - 1, 0);  // so the compiler knows that a warp agrees
    const int row = index * 64 + thread % kWarpgroup / 32 * 16 + thread % 32 / 4;
    Consumer<kHeadDim> self{shared, index, step.scale, {visible[row], visible[row + 8]}, all_see};
    self.load(step, work, work.first_query + row);
    consume(self, first_tile, tile_end);
    self.store(step, work, work.first_query + row);
  }
#endif
}

template <int kHeadDim>
void launch(cudaStream_t stream, const AttentionStep& step, const Tensor& q, const Tensor& kv,
            const AttentionState& state) {
  using P = Plan<kHeadDim>;
  constexpr int64_t kCacheBytes = 32 << 20;  // of L2, for keys and values
  const auto [heads, kv_heads, head_dim] = step.shape;
  const Piece &queries = step.queries, &keys = step.keys;
  const int64_t all_rows = q.shape[1], first = queries.first_row;
  const int64_t group_kv_heads =
      std::clamp<int64_t>(kCacheBytes / (keys.row_count * head_dim * 4), 1, kv_heads);
  const int64_t blocks = (queries.row_count + P::kQueries - 1) / P::kQueries * heads;
  CHECK(queries.row_count < 1 << 30 && keys.row_count < 1 << 30 && blocks < 1 << 30, "a piece of ",
        queries.row_count, " queries and ", keys.row_count, " keys");

  const CUtensorMap q_map =
      make_tensor_map(q.data + first * head_dim * 2,
                      {heads, queries.row_count, head_dim, all_rows * head_dim, P::kQueries});
  const CUtensorMap kv_map =
      make_tensor_map(kv.data, {2 * kv_heads, keys.row_count, head_dim, keys.row_count * head_dim, kKeys});
  const Parameters parameters{
      .first_visible = step.first_visible.as<int64_t>().data() + first,
      .output = state.output.as<float>().data() + first * head_dim,
      .maximum = state.maximum.as<float>().data() + first,
      .sum = state.sum.as<float>().data() + first,
      .all_rows = all_rows,
      .queries = queries,
      .keys = keys,
      // Tiles begin at multiples of kKeys: pieces may be cut there without a change of bits.
      .rows_before = int(keys.first_position / keys.stride % kKeys),
      .heads = int(heads),
      .kv_heads = int(kv_heads),
      .group_heads = int(group_kv_heads * (heads / kv_heads)),
      .scale = std::numbers::log2e_v<float> / std::sqrt(float(head_dim))};
  constexpr int kBytes = P::kBytes + kTileAlignment;
  check_cuda(cudaFuncSetAttribute(forward<kHeadDim>, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes));
  forward<kHeadDim><<<unsigned(blocks), P::kThreads, kBytes, stream>>>(q_map, kv_map, parameters);
  check_cuda(cudaGetLastError());
}

}  // namespace

void attention_forward(cudaStream_t stream, const AttentionStep& step, const Tensor& q, const Tensor& kv,
                       const AttentionState& state) {
  if (step.queries.row_count == 0 || step.keys.row_count == 0) return;
  CHECK(q.dtype == Dtype::bf16 && (step.shape.head_dim == 64 || step.shape.head_dim == 128),
        "attention by wgmma takes bf16 and head_dim 64 or 128, not ", name_of(q.dtype), " and ",
        step.shape.head_dim);
  if (step.shape.head_dim == 64) launch<64>(stream, step, q, kv, state);
  else launch<128>(stream, step, q, kv, state);
}

}  // namespace ringlet::cuda::wgmma
