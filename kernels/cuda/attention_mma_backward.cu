// Attention backward on tensor cores by mma.sync (arXiv:2307.08691, section 3.1.2, with a kernel for each owner): one
// kernel owns dq, another dk and dv, so sums need no atomics and their order is fixed. Both go on with the sums that
// they find, in steps that do not depend on where a piece begins: keys downwards by 32, queries upwards by 64 with the
// heads of a group in turn.
#include <cuda_runtime.h>

#include <cmath>
#include <limits>
#include <numbers>

#include "kernels/cuda/attention.h"
#include "kernels/cuda/attention_mma_tiles.cuh"
#include "kernels/cuda/cuda_raii.h"

namespace ringlet::cuda::mma {
namespace {

using namespace mma_tiles;

constexpr int kQueryRows = 128;                // of a block of query_gradients
constexpr int kKeyRows = 128, kQueryStep = 64;  // of a block of key_gradients
constexpr int kQueryThreads = 128, kKeyThreads = 256;
constexpr float kEndless = 1e30f;  // a log-sum-exp that makes every probability 0
constexpr float kSawNothing = -std::numeric_limits<float>::infinity();

/// A step's pieces; pointers start at the piece.
struct BackwardPieces {
  const Bf16 *q, *k, *v, *d_output;
  const float *lse, *delta;
  const int64_t* first_visible;
  float *dq, *dk, *dv;
  int64_t head_rows, d_output_stride;  // rows from head to head of q, lse, delta, dq; elements from row to row
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
__device__ int first_at_or_after(int64_t position, int64_t first, int64_t stride, int count) {
  const int64_t distance = position - first;
  if (distance <= 0) return 0;
  return int(min(int64_t(count), (distance + stride - 1) / stride));
}

__device__ Interval keys_seen(const BackwardPieces& pieces, int query) {
  const auto index = [&](int64_t position) {
    return first_at_or_after(position, pieces.key_position, pieces.key_stride, pieces.keys);
  };
  return {index(pieces.first_visible[query]), index(pieces.position_of_query(query) + 1)};
}

/// The first query that no longer sees `position`, if its own position is past it.
__device__ int first_query_past(const BackwardPieces& pieces, int64_t position) {
  if (pieces.first_visible[pieces.queries - 1] <= position) return pieces.queries;
  int low = 0, high = pieces.queries - 1;
  while (low < high) {
    const int middle = (low + high) / 2;
    if (pieces.first_visible[middle] > position) high = middle;
    else low = middle + 1;
  }
  return low;
}

/// Queries that see some, and those that see all, of the keys [first, first + count). Keys past the last one are seen
/// by all: their gradients go nowhere.
struct QueriesOfKeys {
  Interval some, all;
  __device__ QueriesOfKeys(const BackwardPieces& pieces, int first, int count) : some{0, 0}, all{0, 0} {
    if (first >= pieces.keys) return;
    const int64_t lowest = pieces.position_of_key(first);
    const int64_t highest = pieces.position_of_key(min(first + count, pieces.keys) - 1);
    const auto index = [&](int64_t position) {
      return first_at_or_after(position, pieces.query_position, pieces.query_stride, pieces.queries);
    };
    some = {index(lowest), first_query_past(pieces, highest)};
    all = {index(highest), first_query_past(pieces, lowest)};
  }
};

/// Statistics of rows as the kernels want them; rows past the last one have probability 0.
__device__ float lse_times_log2e(const float* lse, int row, int rows) {
  if (row >= rows || lse[row] == kSawNothing) return kEndless;
  return lse[row] * std::numbers::log2e_v<float>;
}
__device__ float scaled_delta(const float* delta, int row, int rows, float scale) {
  return row < rows ? delta[row] * scale : 0.0f;
}

template <int kHeadDim>
struct QueryShared {
  static constexpr int kKeyStep = kHeadDim > 64 ? 32 : 64;
  Bf16 q[kQueryRows * kHeadDim], d_output[kQueryRows * kHeadDim];
  Bf16 k[2][kKeyStep * kHeadDim], v[2][kKeyStep * kHeadDim];
  float lse[kQueryRows], delta[kQueryRows];
  Interval seen[kQueryRows];
};

/// Scores and d weights of 32 queries on 32 keys to scaled d scores, as a left operand.
__device__ inline void d_scores_of_queries(Weights<32>& d_scores, const Sums<32>& scores, const Sums<32>& d_weights,
                                           const float* lse, const float* delta, const Interval* seen, int key,
                                           bool all_seen, const BackwardPieces& pieces) {
  const int lane = int(threadIdx.x) % 32;
#pragma unroll
  for (int half = 0; half < 4; ++half) {
    const int m = half / 2, pair = half % 2, row = half * 8 + lane / 4;
    const float row_lse = lse[row], row_delta = delta[row];
    float weights[8];
#pragma unroll
    for (int e = 0; e < 8; ++e) {
      weights[e] = exp2_approximate(fmaf(scores[m][e / 2][pair * 2 + e % 2], pieces.scale_log2, -row_lse));
    }
    if (!all_seen) {
      const Interval row_seen = seen[row];
#pragma unroll
      for (int e = 0; e < 8; ++e) {
        if (!row_seen.holds(key + e / 2 * 8 + lane % 4 * 2 + e % 2)) weights[e] = 0.0f;
      }
    }
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      const float* const d_weight = d_weights[m][n] + pair * 2;
      d_scores[m][n / 2][n % 2 * 2 + pair] =
          pack_bf16(weights[2 * n] * fmaf(d_weight[0], pieces.scale, -row_delta),
                    weights[2 * n + 1] * fmaf(d_weight[1], pieces.scale, -row_delta));
    }
  }
}

/// One block per head and kQueryRows queries; a warp owns 32 of them.
template <int kHeadDim>
__global__ void __launch_bounds__(kQueryThreads, 2) query_gradients(const BackwardPieces pieces) {
  using Shared = QueryShared<kHeadDim>;
  constexpr int kKeyStep = Shared::kKeyStep;
  extern __shared__ __align__(1024) unsigned char shared_bytes[];
  Shared& shared = *reinterpret_cast<Shared*>(shared_bytes);
  // Later queries see more keys: they come first.
  const int tiles = (pieces.queries + kQueryRows - 1) / kQueryRows;
  const int tile = tiles - 1 - int(blockIdx.x) / pieces.heads, head = int(blockIdx.x) % pieces.heads;
  const int first_query = tile * kQueryRows, present = min(kQueryRows, pieces.queries - first_query);
  const int64_t first_row = head * pieces.head_rows + first_query;
  const int64_t key_offset = int64_t(head / (pieces.heads / pieces.kv_heads)) * pieces.keys * kHeadDim;

  copy_tile<kQueryRows, kHeadDim, kQueryThreads>(shared_address(shared.q), pieces.q + first_row * kHeadDim, kHeadDim,
                                                 present);
  copy_tile<kQueryRows, kHeadDim, kQueryThreads>(
      shared_address(shared.d_output), pieces.d_output + first_query * pieces.d_output_stride + head * kHeadDim,
      pieces.d_output_stride, present);
  const int thread = int(threadIdx.x);
  shared.lse[thread] = lse_times_log2e(pieces.lse + first_row, thread, present);
  shared.delta[thread] = scaled_delta(pieces.delta + first_row, thread, present, pieces.scale);
  shared.seen[thread] = thread < present ? keys_seen(pieces, first_query + thread) : Interval{0, 0};
  __syncthreads();

  const int first_tile = shared.seen[0].begin / kKeyStep;
  const int past_tile = (shared.seen[present - 1].end + kKeyStep - 1) / kKeyStep;
  const auto load_keys = [&](int key_tile) {
    const int key = key_tile * kKeyStep, stage = key_tile % 2;
    const int64_t offset = key_offset + int64_t(key) * kHeadDim;
    copy_tile<kKeyStep, kHeadDim, kQueryThreads>(shared_address(shared.k[stage]), pieces.k + offset, kHeadDim,
                                                 pieces.keys - key);
    copy_tile<kKeyStep, kHeadDim, kQueryThreads>(shared_address(shared.v[stage]), pieces.v + offset, kHeadDim,
                                                 pieces.keys - key);
  };
  // Copies under way must land before the block ends.
  if (first_tile >= past_tile) return wait_for_copies();
  load_keys(past_tile - 1);

  // What the queries of this warp see: some of the keys in `some`, all of those in `all`.
  const int warp_row = thread / 32 * 32, warp_present = min(32, present - warp_row);
  const Interval first_seen = shared.seen[warp_row], last_seen = shared.seen[warp_row + max(warp_present, 1) - 1];
  const Interval some{first_seen.begin, last_seen.end}, all{last_seen.begin, first_seen.end};
  float* const dq = pieces.dq + (first_row + warp_row) * kHeadDim;
  Sums<kHeadDim> sums;
  load_sums<kHeadDim>(sums, dq, warp_present);
  const uint32_t left = left_offset<kHeadDim>(), right = right_offset<kHeadDim>();
  const uint32_t q = shared_address(shared.q + warp_row * kHeadDim) + left;
  const uint32_t d_output = shared_address(shared.d_output + warp_row * kHeadDim) + left;
  for (int key_tile = past_tile - 1; key_tile >= first_tile; --key_tile) {
    wait_for_copies();
    __syncthreads();  // the copies of all threads have landed, and all are done with the other stage
    if (key_tile > first_tile) load_keys(key_tile - 1);
    const uint32_t k = shared_address(shared.k[key_tile % 2]), v = shared_address(shared.v[key_tile % 2]);
#pragma unroll 1
    for (int part = kKeyStep / 32 - 1; part >= 0; --part) {
      const int key = key_tile * kKeyStep + part * 32;
      if (!some.meets(key, key + 32)) continue;
      const uint32_t part_offset = uint32_t(part) * (32 * kHeadDim * 2);
      Sums<32> scores, d_weights;
      clear<32>(scores);
      clear<32>(d_weights);
#pragma unroll
      for (int step = 0; step < kHeadDim / 16; ++step) {
        add_products<kHeadDim, 32>(scores, q, k + part_offset + right, step);
        add_products<kHeadDim, 32>(d_weights, d_output, v + part_offset + right, step);
      }
      Weights<32> d_scores;
      const bool all_seen = all.covers(key, key + 32);
      d_scores_of_queries(d_scores, scores, d_weights, shared.lse + warp_row, shared.delta + warp_row,
                          shared.seen + warp_row, key, all_seen, pieces);
      add_weighted_rows<kHeadDim, 32>(sums, d_scores, k + part_offset + left);
    }
  }
  store_sums<kHeadDim>(sums, dq, warp_present);
}

template <int kHeadDim>
struct KeyShared {
  Bf16 k[kKeyRows * kHeadDim], v[kKeyRows * kHeadDim];
  Bf16 q[3][kQueryStep * kHeadDim], d_output[2][kQueryStep * kHeadDim];
  uint4 weights[4][8][32];  // of each pair of warps, in the order of the fragments
  float lse[2][kQueryStep], delta[2][kQueryStep];
  Interval seen[2][kQueryStep];  // set where the tile of keys is not seen by all
};

/// Scores of 32 keys with 64 queries to weights, as a left operand.
__device__ inline void weights_of_keys(Weights<64>& weights, const Sums<64>& scores, const float* lse,
                                       const Interval* seen, int key, bool all_seen, float scale_log2) {
  const int lane = int(threadIdx.x) % 32;
#pragma unroll
  for (int n = 0; n < 8; ++n) {
    const int query = n * 8 + lane % 4 * 2;
    const float query_lse[2] = {lse[query], lse[query + 1]};
    float weight[2][4];
#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        weight[m][e] = exp2_approximate(fmaf(scores[m][n][e], scale_log2, -query_lse[e % 2]));
      }
    }
    if (!all_seen) {
#pragma unroll
      for (int e = 0; e < 8; ++e) {
        const int row = key + e / 2 * 8 + lane / 4;
        if (!seen[query + e % 2].holds(row)) weight[e / 4][e % 4] = 0.0f;
      }
    }
#pragma unroll
    for (int m = 0; m < 2; ++m) {
      weights[m][n / 2][n % 2 * 2] = pack_bf16(weight[m][0], weight[m][1]);
      weights[m][n / 2][n % 2 * 2 + 1] = pack_bf16(weight[m][2], weight[m][3]);
    }
  }
}

/// Weights and d weights of 32 keys with 64 queries to scaled d scores, which take the place of the weights.
__device__ inline void d_scores_of_keys(Weights<64>& weights, const Sums<64>& d_weights, const float* delta,
                                        float scale) {
  const int lane = int(threadIdx.x) % 32;
#pragma unroll
  for (int n = 0; n < 8; ++n) {
    const int query = n * 8 + lane % 4 * 2;
    const float delta0 = delta[query], delta1 = delta[query + 1];
#pragma unroll
    for (int half = 0; half < 4; ++half) {
      uint32_t& both = weights[half / 2][n / 2][n % 2 * 2 + half % 2];
      const float* const d_weight = d_weights[half / 2][n] + half % 2 * 2;
      both = pack_bf16(low_float(both) * fmaf(d_weight[0], scale, -delta0),
                       high_float(both) * fmaf(d_weight[1], scale, -delta1));
    }
  }
}

/// Hands weights from one warp of a pair to the other, lane by lane. The pair has the barrier 1 + pair; shared memory
/// is free again at the block's next barrier.
__device__ inline void give_weights(uint4 (&to)[8][32], const Weights<64>& weights, int pair) {
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const uint32_t(&from)[4] = weights[i / 4][i % 4];
    to[i][threadIdx.x % 32] = make_uint4(from[0], from[1], from[2], from[3]);
  }
  __threadfence_block();
  asm volatile("barrier.cta.arrive %0, 64;" ::"r"(1 + pair) : "memory");
}
__device__ inline void take_weights(Weights<64>& weights, const uint4 (&from)[8][32], int pair) {
  asm volatile("barrier.cta.sync %0, 64;" ::"r"(1 + pair) : "memory");
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const uint4 four = from[i][threadIdx.x % 32];
    uint32_t(&to)[4] = weights[i / 4][i % 4];
    to[0] = four.x, to[1] = four.y, to[2] = four.z, to[3] = four.w;
  }
}

/// One block per KV head and kKeyRows keys. Two warps share 32 keys, so that each has room for 32 rows of sums: one
/// computes the weights and dv, the other takes the weights over and computes d scores and dk. The second adds to dk a
/// step later, when the first is at its exponentials.
template <int kHeadDim>
__global__ void __launch_bounds__(kKeyThreads, 1) key_gradients(const BackwardPieces pieces) {
  extern __shared__ __align__(1024) unsigned char shared_bytes[];
  KeyShared<kHeadDim>& shared = *reinterpret_cast<KeyShared<kHeadDim>*>(shared_bytes);
  // Earlier keys are seen by more queries: they come first.
  const int tile = int(blockIdx.x) / pieces.kv_heads, kv_head = int(blockIdx.x) % pieces.kv_heads;
  const int first_key = tile * kKeyRows, group = pieces.heads / pieces.kv_heads;
  const QueriesOfKeys block_queries(pieces, first_key, kKeyRows);
  const int first_step = block_queries.some.begin / kQueryStep;
  const int past_step = (block_queries.some.end + kQueryStep - 1) / kQueryStep;
  if (block_queries.some.begin >= block_queries.some.end) return;

  const int thread = int(threadIdx.x), pair = thread / 32 % 4;
  const bool owns_dv = thread < kKeyThreads / 2;
  const int64_t first_key_row = int64_t(kv_head) * pieces.keys + first_key;
  const int keys_present = pieces.keys - first_key;
  copy_tile<kKeyRows, kHeadDim, kKeyThreads>(shared_address(shared.k), pieces.k + first_key_row * kHeadDim, kHeadDim,
                                             keys_present);
  copy_tile<kKeyRows, kHeadDim, kKeyThreads>(shared_address(shared.v), pieces.v + first_key_row * kHeadDim, kHeadDim,
                                             keys_present);

  const auto present_in = [&](int step) { return min(kQueryStep, pieces.queries - step * kQueryStep); };
  const auto load_queries = [&](int step, int head, int q_stage, int stage) {
    const int64_t row = int64_t(step) * kQueryStep;
    copy_tile<kQueryStep, kHeadDim, kKeyThreads>(shared_address(shared.q[q_stage]),
                                                 pieces.q + (head * pieces.head_rows + row) * kHeadDim, kHeadDim,
                                                 present_in(step));
    copy_tile<kQueryStep, kHeadDim, kKeyThreads>(shared_address(shared.d_output[stage]),
                                                 pieces.d_output + row * pieces.d_output_stride + head * kHeadDim,
                                                 pieces.d_output_stride, present_in(step));
  };
  // Rows of the statistics: a thread reads early what it writes late, so that nobody waits for the memory.
  const auto read_statistic = [&](int step, int head) {
    const int row = thread % kQueryStep;
    const int64_t offset = head * pieces.head_rows + int64_t(step) * kQueryStep;
    if (thread < kQueryStep) return lse_times_log2e(pieces.lse + offset, row, present_in(step));
    if (thread >= 2 * kQueryStep) return 0.0f;
    return scaled_delta(pieces.delta + offset, row, present_in(step), pieces.scale);
  };
  const auto write_statistic = [&](int step, int stage, float statistic) {
    const int row = thread % kQueryStep, present = present_in(step), query = step * kQueryStep;
    if (thread < kQueryStep) shared.lse[stage][row] = statistic;
    else if (thread < 2 * kQueryStep) shared.delta[stage][row] = statistic;
    else if (thread < 3 * kQueryStep && !block_queries.all.covers(query, query + present)) {
      shared.seen[stage][row] = row < present ? keys_seen(pieces, query + row) : Interval{0, 0};
    }
  };
  load_queries(first_step, kv_head * group, 0, 0);
  write_statistic(first_step, 0, read_statistic(first_step, kv_head * group));

  const int warp_key = pair * 32, warp_present = min(32, keys_present - warp_key);
  const QueriesOfKeys queries(pieces, first_key + warp_key, 32);
  float* const gradient = (owns_dv ? pieces.dv : pieces.dk) + (first_key_row + warp_key) * kHeadDim;
  Sums<kHeadDim> sums;
  load_sums<kHeadDim>(sums, gradient, warp_present);
  const uint32_t left = left_offset<kHeadDim>(), right = right_offset<kHeadDim>();
  const uint32_t keys = shared_address((owns_dv ? shared.k : shared.v) + warp_key * kHeadDim) + left;
  const uint32_t q = shared_address(shared.q), d_output = shared_address(shared.d_output);
  constexpr uint32_t kStageBytes = kQueryStep * kHeadDim * 2;
  Weights<64> weights;
  bool pending = false;  // weights hold d scores that are not in dk yet
  uint32_t q_before = q;
  int stage = 0, q_stage = 0;
  for (int step = first_step, member = 0; step < past_step; stage ^= 1) {
    wait_for_copies();
    __syncthreads();  // the copies of all threads have landed, and all are done with the step before
    const int next_member = member + 1 < group ? member + 1 : 0;
    const int next_step = next_member == 0 ? step + 1 : step, next_q_stage = q_stage < 2 ? q_stage + 1 : 0;
    float statistic = 0.0f;
    if (next_step < past_step) {
      load_queries(next_step, kv_head * group + next_member, next_q_stage, stage ^ 1);
      statistic = read_statistic(next_step, kv_head * group + next_member);
    }
    const uint32_t q_now = q + uint32_t(q_stage) * kStageBytes, d_output_now = d_output + uint32_t(stage) * kStageBytes;
    const int query = step * kQueryStep, past_query = query + present_in(step);
    const bool seen = queries.some.meets(query, past_query);
    if (!owns_dv && pending) add_weighted_rows<kHeadDim, 64>(sums, weights, q_before + left);
    if (seen) {
      Sums<64> products;  // scores, or d weights
      clear<64>(products);
#pragma unroll
      for (int part = 0; part < kHeadDim / 16; ++part) {
        add_products<kHeadDim, 64>(products, keys, (owns_dv ? q_now : d_output_now) + right, part);
      }
      if (owns_dv) {
        weights_of_keys(weights, products, shared.lse[stage], shared.seen[stage], first_key + warp_key,
                        queries.all.covers(query, past_query), pieces.scale_log2);
        give_weights(shared.weights[pair], weights, pair);
        add_weighted_rows<kHeadDim, 64>(sums, weights, d_output_now + left);
      } else {
        take_weights(weights, shared.weights[pair], pair);
        d_scores_of_keys(weights, products, shared.delta[stage], pieces.scale);
      }
    }
    pending = seen;
    q_before = q_now;
    if (next_step < past_step) write_statistic(next_step, stage ^ 1, statistic);
    step = next_step, member = next_member, q_stage = next_q_stage;
  }
  if (!owns_dv && pending) add_weighted_rows<kHeadDim, 64>(sums, weights, q_before + left);
  store_sums<kHeadDim>(sums, gradient, warp_present);
}

template <int kHeadDim>
void launch(cudaStream_t stream, const BackwardPieces& pieces) {
  const auto blocks = [](int rows, int rows_of_block, int heads) {
    const int64_t count = (int64_t(rows) + rows_of_block - 1) / rows_of_block * heads;
    CHECK(count <= std::numeric_limits<int>::max(), count, " blocks of attention");
    return unsigned(count);
  };
  constexpr auto kAttribute = cudaFuncAttributeMaxDynamicSharedMemorySize;
  constexpr int kQueryBytes = sizeof(QueryShared<kHeadDim>), kKeyBytes = sizeof(KeyShared<kHeadDim>);
  check_cuda(cudaFuncSetAttribute(query_gradients<kHeadDim>, kAttribute, kQueryBytes));
  check_cuda(cudaFuncSetAttribute(key_gradients<kHeadDim>, kAttribute, kKeyBytes));
  const unsigned query_blocks = blocks(pieces.queries, kQueryRows, pieces.heads);
  query_gradients<kHeadDim><<<query_blocks, kQueryThreads, kQueryBytes, stream>>>(pieces);
  check_cuda(cudaGetLastError());
  const unsigned key_blocks = blocks(pieces.keys, kKeyRows, pieces.kv_heads);
  key_gradients<kHeadDim><<<key_blocks, kKeyThreads, kKeyBytes, stream>>>(pieces);
  check_cuda(cudaGetLastError());
}

}  // namespace

void attention_backward(cudaStream_t stream, const AttentionStep& step, const Tensor& q, const Tensor& kv,
                        const AttentionGradient& gradient, const Tensor& dq, const Tensor& dkv) {
  const auto [heads, kv_heads, head_dim] = step.shape;
  const int64_t queries = step.queries.row_count, keys = step.keys.row_count, row = step.queries.first_row;
  CHECK(head_dim == 64 || head_dim == 128, "head_dim ", head_dim, " on tensor cores: 64 or 128");
  if (queries == 0 || keys == 0 || heads == 0) return;
  constexpr int64_t kMostRows = std::numeric_limits<int>::max() / 2;  // indices of tiles' ends are int
  CHECK(queries <= kMostRows && keys <= kMostRows, queries, " queries on ", keys, " keys in one piece");
  const int64_t values = kv_heads * keys * head_dim;
  BackwardPieces pieces{};
  pieces.q = q.as<Bf16>().data() + row * head_dim;
  pieces.k = kv.as<Bf16>().data();
  pieces.v = pieces.k + values;
  pieces.d_output = gradient.d_output.row<Bf16>(row);
  pieces.lse = gradient.lse.as<float>().data() + row;
  pieces.delta = gradient.delta.as<float>().data() + row;
  pieces.first_visible = step.first_visible.as<int64_t>().data() + row;
  pieces.dq = dq.as<float>().data() + row * head_dim;
  pieces.dk = dkv.as<float>().data();
  pieces.dv = pieces.dk + values;
  pieces.head_rows = q.shape[1];
  pieces.d_output_stride = gradient.d_output.row_stride;
  pieces.query_position = step.queries.first_position, pieces.query_stride = step.queries.stride;
  pieces.key_position = step.keys.first_position, pieces.key_stride = step.keys.stride;
  pieces.queries = int(queries), pieces.keys = int(keys);
  pieces.heads = int(heads), pieces.kv_heads = int(kv_heads);
  pieces.scale = 1 / std::sqrt(float(head_dim));
  pieces.scale_log2 = std::numbers::log2e_v<float> / std::sqrt(float(head_dim));
  if (head_dim == 64) launch<64>(stream, pieces);
  else launch<128>(stream, pieces);
}

}  // namespace ringlet::cuda::mma
