// The gradients of keys and values by mma.sync.
#include <cuda_runtime.h>

#include "kernels/cuda/attention_mma_backward.cuh"
#include "kernels/cuda/attention_mma_tiles.cuh"
#include "kernels/cuda/cuda_raii.h"

namespace ringlet::cuda::mma::backward {
namespace {

using namespace mma_tiles;

constexpr int kKeyRows = 128, kQueryStep = 64, kThreads = 256;

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

/// Queries that see some, and those that see all, of the keys [first, first + count). Keys past the last one
/// count as seen by all: their gradients go nowhere.
struct QueriesOfKeys {
  Interval some, all;
  QueriesOfKeys() = default;
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

template <int kHeadDim>
struct KeyShared {
  Bf16 k[kKeyRows * kHeadDim], v[kKeyRows * kHeadDim];
  Bf16 q[3][kQueryStep * kHeadDim], d_output[2][kQueryStep * kHeadDim];
  uint4 weights[4][8][32];  // of each pair of warps, in the order of the fragments
  float lse[2][kQueryStep], delta[2][kQueryStep];
  Interval seen[2][kQueryStep];  // set where the tile of keys is not seen by all
  QueriesOfKeys queries[4];      // of each pair of warps
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

/// Hands weights from one warp of a pair to the other, lane by lane. The pair has the barrier 1 + pair; the
/// shared memory is free again at the block's next barrier.
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

/// One block per KV head and kKeyRows keys. Two warps share 32 keys, so that each has room for 32 rows of
/// sums: one computes the weights and dv, the other takes them over and computes d scores and dk. The second
/// adds to dk a step later, when the first is at its exponentials.
template <int kHeadDim>
__global__ void __launch_bounds__(kThreads, 1) key_gradients(const BackwardPieces pieces) {
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
  const bool owns_dv = thread < kThreads / 2;
  const int64_t first_key_row = int64_t(kv_head) * pieces.keys + first_key;
  const int keys_present = pieces.keys - first_key;
  const int64_t key_offset = first_key_row * kHeadDim;
  copy_tile<kKeyRows, kHeadDim, kThreads>(shared_address(shared.k), pieces.k + key_offset, kHeadDim,
                                          keys_present);
  copy_tile<kKeyRows, kHeadDim, kThreads>(shared_address(shared.v), pieces.v + key_offset, kHeadDim,
                                          keys_present);

  const auto present_in = [&](int step) { return min(kQueryStep, pieces.queries - step * kQueryStep); };
  const auto load_queries = [&](int step, int head, int q_stage, int stage) {
    const int64_t row = int64_t(step) * kQueryStep;
    const Bf16* const from_q = pieces.q + (head * pieces.head_rows + row) * kHeadDim;
    const Bf16* const from_d_output = pieces.d_output + row * pieces.d_output_stride + head * kHeadDim;
    copy_tile<kQueryStep, kHeadDim, kThreads>(shared_address(shared.q[q_stage]), from_q, kHeadDim,
                                              present_in(step));
    copy_tile<kQueryStep, kHeadDim, kThreads>(shared_address(shared.d_output[stage]), from_d_output,
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
  if (owns_dv && thread % 32 == 0) shared.queries[pair] = QueriesOfKeys(pieces, first_key + warp_key, 32);
  float* const gradient = (owns_dv ? pieces.dv : pieces.dk) + (first_key_row + warp_key) * kHeadDim;
  Sums<kHeadDim> sums;
  load_sums<kHeadDim>(sums, gradient, warp_present);
  const uint32_t left = left_offset<kHeadDim>(), right = right_offset<kHeadDim>();
  const uint32_t keys = shared_address((owns_dv ? shared.k : shared.v) + warp_key * kHeadDim) + left;
  const uint32_t q = shared_address(shared.q), d_output = shared_address(shared.d_output);
  constexpr uint32_t kStageBytes = kQueryStep * kHeadDim * 2;
  Weights<64> weights;
  uint32_t late_q = 0;  // the queries of the d scores that weights hold and dk does not yet; 0: none
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
    const uint32_t q_now = q + uint32_t(q_stage) * kStageBytes;
    const uint32_t d_output_now = d_output + uint32_t(stage) * kStageBytes;
    const int query = step * kQueryStep, past_query = query + present_in(step);
    const bool seen = shared.queries[pair].some.meets(query, past_query);
    if (!owns_dv && late_q != 0) add_weighted_rows<kHeadDim, 64>(sums, weights, late_q + left);
    if (seen) {
      Sums<64> products;  // scores, or d weights
      clear<64>(products);
#pragma unroll
      for (int part = 0; part < kHeadDim / 16; ++part) {
        add_products<kHeadDim, 64>(products, keys, (owns_dv ? q_now : d_output_now) + right, part);
      }
      if (owns_dv) {
        weights_of_keys(weights, products, shared.lse[stage], shared.seen[stage], first_key + warp_key,
                        shared.queries[pair].all.covers(query, past_query), pieces.scale_log2);
        give_weights(shared.weights[pair], weights, pair);
        add_weighted_rows<kHeadDim, 64>(sums, weights, d_output_now + left);
      } else {
        take_weights(weights, shared.weights[pair], pair);
        d_scores_of_keys(weights, products, shared.delta[stage], pieces.scale);
      }
    }
    late_q = seen ? q_now : 0;
    if (next_step < past_step) write_statistic(next_step, stage ^ 1, statistic);
    step = next_step, member = next_member, q_stage = next_q_stage;
  }
  if (!owns_dv && late_q != 0) add_weighted_rows<kHeadDim, 64>(sums, weights, late_q + left);
  store_sums<kHeadDim>(sums, gradient, warp_present);
}

}  // namespace

template <int kHeadDim>
void add_key_gradients(cudaStream_t stream, const BackwardPieces& pieces) {
  constexpr int kBytes = sizeof(KeyShared<kHeadDim>);
  constexpr auto kAttribute = cudaFuncAttributeMaxDynamicSharedMemorySize;
  check_cuda(cudaFuncSetAttribute(key_gradients<kHeadDim>, kAttribute, kBytes));
  const unsigned blocks = block_count(pieces.keys, kKeyRows, pieces.kv_heads);
  key_gradients<kHeadDim><<<blocks, kThreads, kBytes, stream>>>(pieces);
  check_cuda(cudaGetLastError());
}

template void add_key_gradients<64>(cudaStream_t stream, const BackwardPieces& pieces);
template void add_key_gradients<128>(cudaStream_t stream, const BackwardPieces& pieces);

}  // namespace ringlet::cuda::mma::backward
