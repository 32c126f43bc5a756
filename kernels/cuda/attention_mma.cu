// Attention forward with mma.sync (compute capability 8.0 and later): bf16, head_dim 64 or 128.
// A block of four warps owns 128 queries of one head, 32 a warp, and takes keys in tiles of 64 from the last
// one downwards. Scores, weights and sums stay in registers: the scores' fragments are the left operand of
// the second product. arXiv:2205.14135, arXiv:2307.08691.
#include <cmath>
#include <numbers>

#include "kernels/cuda/attention.h"
#include "kernels/cuda/attention_tiles.cuh"
#include "kernels/cuda/cuda_raii.h"
#include "kernels/cuda/mma_sync.cuh"

namespace ringlet::cuda::mma {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = 32 * kWarps;
constexpr int kQueries = 128;  // of a block
constexpr int kKeys = kSlotsPerTile;
constexpr int kBlocks = kQueries / kWarps / 16;  // of 16 queries in a warp
constexpr int kStages = 2;                       // key tiles in shared memory
constexpr unsigned kAllLanes = 0xffffffffu;

/// Blocks of one multiprocessor. With three for head_dim 64, registers are spilled on compute capability 9.0.
constexpr int kResident = 2;

/// What the queries of a block see, and what else the loop asks for only once a tile: registers are few.
struct BlockMemory {
  KeyTiles tiles;
  int32_t kv_head;
  Slots seen[kQueries];
  float sums[kThreads];  // of each thread's own row: see Running
};

/// Bytes in shared memory, in this order: queries, stages of keys then values, BlockMemory.
template <int kWidth>
struct Layout {
  static constexpr uint32_t kQueryBytes = kQueries * kWidth * 2;
  static constexpr uint32_t kTileBytes = kKeys * kWidth * 2;
  static constexpr uint32_t kStageBytes = 2 * kTileBytes;
  static constexpr uint32_t kMemory = kQueryBytes + kStages * kStageBytes;
  static constexpr uint32_t kBytes = kMemory + sizeof(BlockMemory);
};

struct Arguments {
  StepView view;
  const __nv_bfloat16 *q, *kv;
  float *output, *maximum, *sum;
  float scale;  // log2(e) / sqrt(head_dim)
};

/// The thread's number, read anew: what is computed from it inside a loop stays there, where it would
/// otherwise take a register for the whole loop.
__device__ __forceinline__ int32_t own_thread() {
  int32_t x;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(x));
  __builtin_assume(x >= 0 && x < kThreads);
  return x;
}
__device__ __forceinline__ uint32_t own_lane() { return uint32_t(own_thread()) % 32; }

/// The same number, but the compiler does not know it; for the same end.
__device__ __forceinline__ int32_t opaque(int32_t x) {
  asm volatile("" : "+r"(x));
  return x;
}

/// Starts to copy rows of a piece, `rows`, from `slot` on, to the tile at `to`; zeros for slots without row.
template <int kWidth, int kRows>
__device__ __forceinline__ void copy_tile(const __nv_bfloat16* rows, const TiledPiece& piece, int32_t slot,
                                          uint32_t to) {
  constexpr int kChunks = kWidth / 8, kRowsAtOnce = kThreads / kChunks;
  static_assert(kRowsAtOnce % 8 == 0);  // so that the swizzle is the same in every round
  const int32_t thread = own_thread(), row = thread / kChunks, chunk = thread % kChunks;
  const __nv_bfloat16* from = rows + int64_t(slot - piece.skipped + row) * kWidth + chunk * 8;
  to += uint32_t(row * kWidth * 2 + (chunk ^ (row % 8)) * 16);
#pragma unroll
  for (int i = 0; i < kRows / kRowsAtOnce; ++i) {
    const bool holds = piece.holds(slot + row + i * kRowsAtOnce);
    copy_async(to + i * kRowsAtOnce * kWidth * 2, holds ? from + i * kRowsAtOnce * kWidth : rows,
               holds ? 16 : 0);
  }
}

/// The queries of a block. The last tiles, which see the most keys, come first, and heads side by side, so
/// that those of one KV head find each other's keys in the L2 cache.
struct Place {
  int32_t head, slot;
  int64_t row_zero;  // StepView::query_row

  __device__ __forceinline__ Place(const StepView& view, uint32_t block)
      : head(int32_t(block) % view.heads),
        slot((view.queries.tile_count(kQueries) - 1 - int32_t(block) / view.heads) * kQueries),
        row_zero(view.query_row(head)) {}
};

/// What a warp carries: un-normalised output and softmax of its 32 queries, in fragments. A lane has four
/// rows: row(block, half) of the tile, which it shares with the three others of its quad. Each of them knows
/// the maxima; the sum of the row of number i = 2 * block + half is kept by lane i of the quad alone.
template <int kWidth>
struct Running {
  float output[kBlocks][kWidth / 8][4];
  float maximum[kBlocks][2];
  static_assert(kBlocks == 2);  // four rows, four lanes

  static __device__ __forceinline__ int32_t quad_lane() { return own_thread() % 4; }

  static __device__ __forceinline__ int32_t row(int block, int half) {
    const int32_t thread = own_thread(), warp = thread / 32, lane = thread % 32;
    return (warp * kBlocks + block) * 16 + half * 8 + lane / 4;
  }

  __device__ __forceinline__ void load(const Arguments& arguments, const Place& place, float& sum) {
    each_row(arguments, place, [&](int block, int half, bool holds, int64_t at, float* from) {
      maximum[block][half] = holds ? arguments.maximum[at] : -INFINITY;
      if (quad_lane() == 2 * block + half) sum = holds ? arguments.sum[at] : 0.0f;
#pragma unroll
      for (int n = 0; n < kWidth / 8; ++n) {
        const float2 pair = holds ? *reinterpret_cast<const float2*>(from + n * 8) : float2{0, 0};
        output[block][n][2 * half] = pair.x;
        output[block][n][2 * half + 1] = pair.y;
      }
    });
  }

  __device__ __forceinline__ void store(const Arguments& arguments, const Place& place, float sum) const {
    each_row(arguments, place, [&](int block, int half, bool holds, int64_t at, float* to) {
      if (!holds) return;
      if (quad_lane() == 2 * block + half) {
        arguments.maximum[at] = maximum[block][half];
        arguments.sum[at] = sum;
      }
#pragma unroll
      for (int n = 0; n < kWidth / 8; ++n) {
        *reinterpret_cast<float2*>(to + n * 8) = {output[block][n][2 * half], output[block][n][2 * half + 1]};
      }
    });
  }

 private:
  template <class Visit>
  static __device__ __forceinline__ void each_row(const Arguments& arguments, const Place& place,
                                                  Visit visit) {
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int32_t own = place.slot + row(block, half);
        const int64_t at = place.row_zero + own;
        visit(block, half, arguments.view.queries.holds(own), at,
              arguments.output + at * kWidth + quad_lane() * 2);
      }
    }
  }
};

using Scores = float[kBlocks][kKeys / 8][4];

/// scores = queries [32, kWidth] * keys^T. `queries`, `keys`: the lane's first addresses.
template <int kWidth>
__device__ __forceinline__ void multiply_keys(uint32_t queries, uint32_t keys, Scores& scores) {
#pragma unroll
  for (int block = 0; block < kBlocks; ++block) {
#pragma unroll
    for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) scores[block][n][i] = 0;
    }
  }
#pragma unroll
  for (int k = 0; k < kWidth / 16; ++k) {
    uint32_t left[kBlocks][4];
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
      load_matrices(left[block], (queries ^ (k * 32)) + block * 16 * kWidth * 2);
    }
#pragma unroll
    for (int n = 0; n < kKeys / 16; ++n) {
      uint32_t right[4];
      load_matrices(right, (keys ^ (k * 32)) + n * 16 * kWidth * 2);
#pragma unroll
      for (int block = 0; block < kBlocks; ++block) {
        multiply_add(scores[block][2 * n], left[block], right[0], right[1]);
        multiply_add(scores[block][2 * n + 1], left[block], right[2], right[3]);
      }
    }
  }
}

/// Scores that are not seen become -infinity. `seen` is of the block's queries.
template <int kWidth>
__device__ __forceinline__ void mask(const Slots* seen, int32_t key_slot, Scores& scores) {
  const int32_t own_slot = key_slot + own_thread() % 4 * 2;
#pragma unroll
  for (int block = 0; block < kBlocks; ++block) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const Slots of_row = seen[Running<kWidth>::row(block, half)];
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          float& score = scores[block][n][2 * half + i];
          score = of_row.hold(own_slot + n * 8 + i) ? score : -INFINITY;
        }
      }
    }
  }
}

__device__ __forceinline__ float highest_of_quad(float x) {
  x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, 1));
  return fmaxf(x, __shfl_xor_sync(kAllLanes, x, 2));
}

/// Of four numbers, one for each lane of the quad: lane i gets the quad's sum (or its own value) of number i.
__device__ __forceinline__ float own_of(const float (&x)[4]) {
  const int32_t thread = own_thread();
  const bool odd = thread & 1, high = thread & 2;
  return high ? (odd ? x[3] : x[2]) : (odd ? x[1] : x[0]);
}
__device__ __forceinline__ float own_sum_of_quad(const float (&x)[4]) {
  const int32_t thread = own_thread();
  const bool odd = thread & 1, high = thread & 2;
  const float low_pair = (odd ? x[1] : x[0]) + __shfl_xor_sync(kAllLanes, odd ? x[0] : x[1], 1);
  const float high_pair = (odd ? x[3] : x[2]) + __shfl_xor_sync(kAllLanes, odd ? x[2] : x[3], 1);
  return (high ? high_pair : low_pair) + __shfl_xor_sync(kAllLanes, high ? low_pair : high_pair, 2);
}

/// Scores to weights relative to the new maximum; brings output and sum to it. Sums are taken over the quad
/// in every tile, not at the end: so a softmax that goes on in another call has the same bits.
template <int kWidth>
__device__ __forceinline__ void weigh(float scale, Scores& scores, Running<kWidth>& running, float* sums) {
  float totals[4], rescales[4];
#pragma unroll
  for (int block = 0; block < kBlocks; ++block) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float highest = scores[block][0][2 * half];
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n) {
        highest = fmaxf(highest, fmaxf(scores[block][n][2 * half], scores[block][n][2 * half + 1]));
      }
      const float before = running.maximum[block][half];
      const float now = fmaxf(before, highest_of_quad(highest) * scale);
      const float base = now == -INFINITY ? 0.0f : now;  // nothing seen yet: weights become 0, not NaN
      const float rescale = fast_exp2(before - base);
      float total = 0;
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          float& score = scores[block][n][2 * half + i];
          score = fast_exp2(fmaf(score, scale, -base));
          total += score;
        }
      }
      running.maximum[block][half] = now;
      totals[2 * block + half] = total;
      rescales[2 * block + half] = rescale;
#pragma unroll
      for (int n = 0; n < kWidth / 8; ++n) {
        running.output[block][n][2 * half] *= rescale;
        running.output[block][n][2 * half + 1] *= rescale;
      }
    }
  }
  float& sum = sums[own_thread()];
  sum = fmaf(sum, own_of(rescales), own_sum_of_quad(totals));
}

/// output += weights * values. `values`: the lane's first address.
template <int kWidth>
__device__ __forceinline__ void multiply_values(const Scores& weights, uint32_t values,
                                                Running<kWidth>& running) {
#pragma unroll
  for (int k = 0; k < kKeys / 16; ++k) {
    uint32_t left[kBlocks][4];
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
      const auto& even = weights[block][2 * k];
      const auto& odd = weights[block][2 * k + 1];
      left[block][0] = narrow(even[0], even[1]);
      left[block][1] = narrow(even[2], even[3]);
      left[block][2] = narrow(odd[0], odd[1]);
      left[block][3] = narrow(odd[2], odd[3]);
    }
#pragma unroll
    for (int n = 0; n < kWidth / 16; ++n) {
      uint32_t right[4];
      load_matrices_transposed(right, (values ^ (n * 32)) + k * 16 * kWidth * 2);
#pragma unroll
      for (int block = 0; block < kBlocks; ++block) {
        multiply_add(running.output[block][2 * n], left[block], right[0], right[1]);
        multiply_add(running.output[block][2 * n + 1], left[block], right[2], right[3]);
      }
    }
  }
}

/// Takes keys from the last tile downwards; while one is multiplied, the next one is copied.
template <int kWidth>
__global__ void __launch_bounds__(kThreads, kResident) forward(const __grid_constant__ Arguments arguments) {
  extern __shared__ __align__(1024) std::byte shared[];
  using At = Layout<kWidth>;
  const StepView& view = arguments.view;
  const Place place(view, blockIdx.x);
  const KeyTiles found = key_tiles_of(view, place.slot, kQueries);
  if (found.first > found.last) return;

  auto& block = *reinterpret_cast<BlockMemory*>(shared + At::kMemory);
  const int32_t kv_head = place.head / view.group();
  if (threadIdx.x == 0) {
    block.tiles = found;
    block.kv_head = kv_head;
  }
  static_assert(kThreads == kQueries);
  block.seen[threadIdx.x] = keys_seen_by(view, place.slot + int32_t(threadIdx.x));
  const uint32_t base = shared_address(shared);
  const auto stage = [&](int32_t tile) {
    return base + At::kQueryBytes + uint32_t(tile % kStages) * At::kStageBytes;
  };
  const auto copy_keys = [&](int32_t tile, int32_t head) {
    const int64_t in_head = int64_t(opaque(view.keys.row_count)) * kWidth;
    const __nv_bfloat16* const k = arguments.kv + head * in_head;
    copy_tile<kWidth, kKeys>(k, view.keys, tile * kKeys, stage(tile));
    copy_tile<kWidth, kKeys>(k + view.kv_heads * in_head, view.keys, tile * kKeys,
                             stage(tile) + At::kTileBytes);
    commit_copies();
  };
  const int64_t first_row = place.row_zero + view.queries.skipped;
  copy_tile<kWidth, kQueries>(arguments.q + first_row * kWidth, view.queries, place.slot, base);
  copy_keys(found.last, kv_head);
  Running<kWidth> running;
  running.load(arguments, place, block.sums[threadIdx.x]);
  __syncthreads();  // the ranges are there

  for (int32_t tile = found.last; tile >= block.tiles.first; --tile) {
    wait_for_copies<0>();
    __syncthreads();  // the tile is there for all, and all have done with the stage that is filled next
    if (tile > block.tiles.first) copy_keys(tile - 1, block.kv_head);
    Scores scores;
    multiply_keys<kWidth>(
        base + own_thread() / 32 * (kBlocks * 16 * kWidth * 2) + rows_first_offset<kWidth>(own_lane()),
        stage(tile) + columns_first_offset<kWidth>(own_lane()), scores);
    if (!block.tiles.whole(tile)) mask<kWidth>(block.seen, tile * kKeys, scores);
    weigh(arguments.scale, scores, running, block.sums);
    multiply_values(scores, stage(opaque(tile)) + At::kTileBytes + rows_first_offset<kWidth>(own_lane()),
                    running);
  }
  running.store(arguments, Place(view, uint32_t(opaque(int32_t(blockIdx.x)))), block.sums[own_thread()]);
}

template <int kWidth>
void launch(cudaStream_t stream, const Arguments& arguments) {
  constexpr int kBytes = int(Layout<kWidth>::kBytes);
  check_cuda(cudaFuncSetAttribute(forward<kWidth>, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes));
  const unsigned blocks = unsigned(arguments.view.queries.tile_count(kQueries) * arguments.view.heads);
  forward<kWidth><<<blocks, kThreads, kBytes, stream>>>(arguments);
  check_cuda(cudaGetLastError());
}

}  // namespace

void attention_forward(cudaStream_t stream, const AttentionStep& step, const Tensor& q, const Tensor& kv,
                       const AttentionState& state) {
  const Arguments arguments{view_of(step, q),
                            elements<const __nv_bfloat16>(q),
                            elements<const __nv_bfloat16>(kv),
                            elements<float>(state.output),
                            elements<float>(state.maximum),
                            elements<float>(state.sum),
                            std::numbers::log2e_v<float> / std::sqrt(float(step.shape.head_dim))};
  if (step.shape.head_dim == 128)
    launch<128>(stream, arguments);
  else
    launch<64>(stream, arguments);
}

}  // namespace ringlet::cuda::mma
