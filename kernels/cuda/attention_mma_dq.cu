// The gradient of queries by mma.sync.
#include <cuda_runtime.h>

#include "kernels/cuda/attention_mma_backward.cuh"
#include "kernels/cuda/attention_mma_tiles.cuh"
#include "kernels/cuda/cuda_raii.h"

namespace ringlet::cuda::mma::backward {
namespace {

using namespace mma_tiles;

constexpr int kQueryRows = 128, kThreads = 128;

template <int kHeadDim>
struct QueryShared {
  static constexpr int kKeyStep = kHeadDim > 64 ? 32 : 64;
  Bf16 q[kQueryRows * kHeadDim], d_output[kQueryRows * kHeadDim];
  Bf16 k[2][kKeyStep * kHeadDim], v[2][kKeyStep * kHeadDim];
  float lse[kQueryRows], delta[kQueryRows];
  Interval seen[kQueryRows];
  // By the queries of a warp: some of them see some of these keys, each sees all of those.
  Interval some_seen[kQueryRows / 32], all_seen[kQueryRows / 32];
};

/// Scores and d weights of 32 queries on 32 keys to scaled d scores, as a left operand.
__device__ inline void d_scores_of_queries(Weights<32>& d_scores, const Sums<32>& scores,
                                           const Sums<32>& d_weights, const float* lse, const float* delta,
                                           const Interval* seen, int key, bool all_seen,
                                           const BackwardPieces& pieces) {
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
__global__ void __launch_bounds__(kThreads, 2) query_gradients(const BackwardPieces pieces) {
  using Shared = QueryShared<kHeadDim>;
  constexpr int kKeyStep = Shared::kKeyStep;
  extern __shared__ __align__(1024) unsigned char shared_bytes[];
  Shared& shared = *reinterpret_cast<Shared*>(shared_bytes);
  // Later queries see more keys: they come first.
  const int tiles = (pieces.queries + kQueryRows - 1) / kQueryRows;
  const int tile = tiles - 1 - int(blockIdx.x) / pieces.heads, head = int(blockIdx.x) % pieces.heads;
  const int first_query = tile * kQueryRows, present = min(kQueryRows, pieces.queries - first_query);
  const int64_t first_row = head * pieces.head_rows + first_query;
  const int64_t first_key_row = int64_t(head / (pieces.heads / pieces.kv_heads)) * pieces.keys;

  const Bf16* const from_q = pieces.q + first_row * kHeadDim;
  const Bf16* const from_d_output = pieces.d_output + first_query * pieces.d_output_stride + head * kHeadDim;
  copy_tile<kQueryRows, kHeadDim, kThreads>(shared_address(shared.q), from_q, kHeadDim, present);
  copy_tile<kQueryRows, kHeadDim, kThreads>(shared_address(shared.d_output), from_d_output,
                                            pieces.d_output_stride, present);
  const int thread = int(threadIdx.x);
  shared.lse[thread] = lse_times_log2e(pieces.lse + first_row, thread, present);
  shared.delta[thread] = scaled_delta(pieces.delta + first_row, thread, present, pieces.scale);
  shared.seen[thread] = thread < present ? keys_seen(pieces, first_query + thread) : Interval{0, 0};
  __syncthreads();
  if (thread % 32 == 0) {
    const Interval first = shared.seen[thread], last = shared.seen[max(min(thread + 32, present) - 1, thread)];
    shared.some_seen[thread / 32] = {first.begin, last.end};
    shared.all_seen[thread / 32] = {last.begin, first.end};
  }

  const int first_tile = shared.seen[0].begin / kKeyStep;
  const int past_tile = (shared.seen[present - 1].end + kKeyStep - 1) / kKeyStep;
  const auto load_keys = [&](int key_tile) {
    const int key = key_tile * kKeyStep, stage = key_tile % 2;
    const int64_t offset = (first_key_row + key) * kHeadDim;
    copy_tile<kKeyStep, kHeadDim, kThreads>(shared_address(shared.k[stage]), pieces.k + offset, kHeadDim,
                                            pieces.keys - key);
    copy_tile<kKeyStep, kHeadDim, kThreads>(shared_address(shared.v[stage]), pieces.v + offset, kHeadDim,
                                            pieces.keys - key);
  };
  // Copies under way must land before the block ends.
  if (first_tile >= past_tile) return wait_for_copies();
  load_keys(past_tile - 1);

  const int warp_row = thread / 32 * 32, warp_present = min(32, present - warp_row);
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
      const Interval some = shared.some_seen[warp_row / 32], all = shared.all_seen[warp_row / 32];
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

}  // namespace

template <int kHeadDim>
void add_query_gradients(cudaStream_t stream, const BackwardPieces& pieces) {
  constexpr int kBytes = sizeof(QueryShared<kHeadDim>);
  constexpr auto kAttribute = cudaFuncAttributeMaxDynamicSharedMemorySize;
  check_cuda(cudaFuncSetAttribute(query_gradients<kHeadDim>, kAttribute, kBytes));
  const unsigned blocks = block_count(pieces.queries, kQueryRows, pieces.heads);
  query_gradients<kHeadDim><<<blocks, kThreads, kBytes, stream>>>(pieces);
  check_cuda(cudaGetLastError());
}

template void add_query_gradients<64>(cudaStream_t stream, const BackwardPieces& pieces);
template void add_query_gradients<128>(cudaStream_t stream, const BackwardPieces& pieces);

}  // namespace ringlet::cuda::mma::backward
