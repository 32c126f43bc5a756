#include <cmath>
#include <limits>
#include <numbers>

#include "kernels/cuda/attention.h"
#include "kernels/cuda/cuda_raii.h"
#include "kernels/cuda/wgmma_key_gradients.cuh"
#include "kernels/cuda/wgmma_query_gradients.cuh"

// Two kernels, so that every gradient has one owner and no sum depends on timing: one walks over the keys of
// a tile of queries (dq), one over the queries of a tile of keys (dk, dv). Both compute scores and
// probabilities anew: 7 products where one kernel would do with 5. In both, warpgroup 0 loads and two others
// compute 64 rows of the tile each. The gradients of the scores never leave the registers: as sums of one
// product they lie as the left operand of the next.

namespace ringlet::cuda::wgmma {
namespace {

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
                 const AttentionGradient& gradient, const Tensor& dq, Write write, const Tensor& dkv) {
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
      .write = write,
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
                        const AttentionGradient& gradient, const Tensor& dq, Write write,
                        const Tensor& dkv) {
  const int64_t head_dim = step.shape.head_dim;
  CHECK(q.dtype == Dtype::bf16 && (head_dim == 64 || head_dim == 128), "attention by wgmma: ",
        name_of(q.dtype), ", head_dim ", head_dim);
  if (head_dim == 64) launch_both<64>(stream, step, q, kv, gradient, dq, write, dkv);
  else launch_both<128>(stream, step, q, kv, gradient, dq, write, dkv);
}

}  // namespace ringlet::cuda::wgmma
