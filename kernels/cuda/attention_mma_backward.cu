// Attention backward on tensor cores by mma.sync (arXiv:2307.08691, section 3.1.2, with a kernel for each
// owner): one kernel owns dq, another dk and dv, so sums need no atomics and their order is fixed. Both go on
// with the sums that they find, in steps that do not depend on where a piece is cut: keys downwards by 32,
// queries upwards by 64 with the heads of a group in turn.
#include <cuda_runtime.h>

#include <cmath>
#include <limits>
#include <numbers>

#include "kernels/cuda/attention.h"
#include "kernels/cuda/attention_mma_backward.cuh"

namespace ringlet::cuda::mma {
namespace backward {

unsigned block_count(int rows, int rows_of_tile, int heads) {
  const int64_t count = (int64_t(rows) + rows_of_tile - 1) / rows_of_tile * heads;
  CHECK(count <= std::numeric_limits<int>::max(), count, " blocks of attention");
  return unsigned(count);
}

}  // namespace backward

void attention_backward(cudaStream_t stream, const AttentionStep& step, const Tensor& q, const Tensor& kv,
                        const AttentionGradient& gradient, const Tensor& dq, const Tensor& dkv) {
  const auto [heads, kv_heads, head_dim] = step.shape;
  const int64_t queries = step.queries.row_count, keys = step.keys.row_count, row = step.queries.first_row;
  CHECK(head_dim == 64 || head_dim == 128, "head_dim ", head_dim, " on tensor cores: 64 or 128");
  if (queries == 0 || keys == 0 || heads == 0) return;
  constexpr int64_t kMostRows = std::numeric_limits<int>::max() / 2;  // indices of tiles' ends are int
  CHECK(queries <= kMostRows && keys <= kMostRows, queries, " queries on ", keys, " keys in one piece");
  const int64_t values = kv_heads * keys * head_dim;
  backward::BackwardPieces pieces{};
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
  if (head_dim == 64) {
    backward::add_query_gradients<64>(stream, pieces);
    backward::add_key_gradients<64>(stream, pieces);
  } else {
    backward::add_query_gradients<128>(stream, pieces);
    backward::add_key_gradients<128>(stream, pieces);
  }
}

}  // namespace ringlet::cuda::mma
