#include "kernels/cuda/qk_norm_backward.cuh"
#include "kernels/cuda/rope.h"
#include "kernels/cuda/rope_heads.cuh"
#include "kernels/op_shapes.h"

namespace ringlet::cuda {
namespace {

__global__ void __launch_bounds__(kThreads)
    fill_rotary_table(Piece piece, double base, int half, float* table) {
  for (int i = int(threadIdx.x); i < half; i += int(blockDim.x)) {
    const double frequency = pow(base, -double(i) / double(half));
    for (int64_t row = int64_t(blockIdx.x) * blockDim.y + threadIdx.y; row < piece.row_count;
         row += int64_t(gridDim.x) * blockDim.y) {
      double sine, cosine;
      sincos(double(piece.first_position + row * piece.stride) * frequency, &sine, &cosine);
      float* const to = table + (piece.first_row + row) * 2 * half;
      to[i] = float(cosine);
      to[half + i] = float(sine);
    }
  }
}

template <class T, int kPack, QkNorm kNorm>
__global__ void __launch_bounds__(kThreads) split_forward(Split<T, T> split, const T* qkv) {
  for (int64_t row = int64_t(blockIdx.x) * blockDim.z + threadIdx.z; row < split.row_count;
       row += int64_t(gridDim.x) * blockDim.z) {
    for (int head = int(threadIdx.y); head < split.all_heads(); head += int(blockDim.y)) {
      const T* const from = qkv + split.fused_offset(row, head);
      Halves<kPack> x;
      for_halves<kPack>(split.head_dim,
                        [&](int half, int i, int column) { load_floats(from + column, x[half][i]); });
      if (split.is_rotated(head)) {
        const float* const rotary = split.rotary + (split.first_row + row) * split.head_dim;
        if constexpr (kNorm == QkNorm::yes) {
          Halves<kPack> angles;  // on their way while the sum is computed
          load_angles<kPack>(rotary, split.head_dim, angles);
          const float scale = inverse_rms<kPack>(x, split.head_dim, split.epsilon);
          const T* const weight = split.norm_weight(head);
          for_halves<kPack>(split.head_dim, [&](int half, int i, int column) {
            float weights[kPack];
            load_floats(weight + column, weights);
#pragma unroll
            for (int j = 0; j < kPack; ++j) x[half][i][j] *= scale * weights[j];
          });
          rotate<kPack>(angles, split.head_dim, 1.0f, x);
        } else {
          rotate<kPack>(rotary, split.head_dim, 1.0f, x);
        }
      }
      T* const to = split.split_row(row, head);
      for_halves<kPack>(split.head_dim,
                        [&](int half, int i, int column) { store_floats(x[half][i], to + column); });
    }
  }
}

template <class T, int kPack>
__global__ void __launch_bounds__(kThreads) split_backward(Split<T, const float> split, T* d_qkv) {
  for (int64_t row = int64_t(blockIdx.x) * blockDim.z + threadIdx.z; row < split.row_count;
       row += int64_t(gridDim.x) * blockDim.z) {
    for (int head = int(threadIdx.y); head < split.all_heads(); head += int(blockDim.y)) {
      const float* const from = split.split_row(row, head);
      Halves<kPack> gradient;
      for_halves<kPack>(split.head_dim,
                        [&](int half, int i, int column) { load_floats(from + column, gradient[half][i]); });
      if (split.is_rotated(head)) {
        rotate<kPack>(split.rotary + (split.first_row + row) * split.head_dim, split.head_dim, -1.0f,
                      gradient);
      }
      for_halves<kPack>(split.head_dim, [&](int half, int i, int column) {
        store_floats(gradient[half][i], d_qkv + split.fused_offset(row, head) + column);
      });
    }
  }
}

template <class T, class U>
Split<T, U> split_of(const QkvSplit& split, const Piece& piece, int64_t all_rows, const Tensor& q,
                     const Tensor& kv) {
  return {.heads = int(split.shape.heads),
          .kv_heads = int(split.shape.kv_heads),
          .head_dim = int(split.shape.head_dim),
          .first_row = piece.first_row,
          .row_count = piece.row_count,
          .all_rows = all_rows,
          .rotary = elements<const float>(split.rotary),
          .q_norm = elements<const T>(split.q_norm),
          .k_norm = elements<const T>(split.k_norm),
          .epsilon = split.epsilon,
          .q = elements<U>(q),
          .kv = elements<U>(kv)};
}

dim3 threads_for(const HeadShape& shape, int pack) {
  const int64_t packs = shape.head_dim / 2 / pack;
  unsigned across = 1;
  while (across < 32 && int64_t(across) < packs) across *= 2;
  const unsigned heads = unsigned(std::min<int64_t>(kThreads / across, shape.heads + 2 * shape.kv_heads));
  constexpr unsigned kMostAlongZ = 64;
  return dim3(across, heads, std::clamp(kThreads / (across * heads), 1u, kMostAlongZ));
}

unsigned blocks_for_rows(int64_t rows, const dim3& threads) {
  constexpr int64_t kMostBlocks = 1 << 16;
  return unsigned(std::min<int64_t>((rows + threads.z - 1) / threads.z, kMostBlocks));
}

/// body(T{}, pack, norm): pack and norm are constants.
template <class Body>
void with_kernel(const QkvSplit& split, Dtype dtype, std::initializer_list<const void*> addresses,
                 const Body& body) {
  const bool aligned = all_aligned(addresses) &&
                       all_aligned({split.rotary.data, split.q_norm.data, split.k_norm.data});
  const auto with_norm = [&](auto type, auto pack) {
    if (split.q_norm)
      body(type, pack, std::integral_constant<QkNorm, QkNorm::yes>());
    else
      body(type, pack, std::integral_constant<QkNorm, QkNorm::no>());
  };
  with_activations(dtype, [&](auto type) {
    constexpr int kHalf = std::is_same_v<decltype(type), float> ? 4 : 8;
    if (aligned && split.shape.head_dim % (2 * kHalf) == 0)
      with_norm(type, std::integral_constant<int, kHalf>());
    else if (aligned)
      with_norm(type, std::integral_constant<int, 4>());
    else
      with_norm(type, std::integral_constant<int, 1>());
  });
}

/// False where shared memory is too small to fetch kStages rows ahead: nothing is launched then.
template <class T, int kPack, int kStages>
bool launch_normed(cudaStream_t stream, const Split<T, const float>& split, std::span<std::byte> scratch,
                   const Tensor& qkv, const Tensor& d_qkv, const Tensor& d_q_norm, const Tensor& d_k_norm) {
  unsigned across = 1;
  while (int64_t(across) * 2 * kPack * kCount<kPack> < split.head_dim) across *= 2;
  const dim3 threads(across, kThreads / across);
  const int64_t width = split.head_dim, room = int64_t(scratch.size() / sizeof(float)) / (2 * width);
  const int64_t bytes = std::max<int64_t>(kThreads * HeadInputs<T, kPack, kStages>::Ring::kBytesPerThread,
                                          int64_t(threads.y) * width * int64_t(sizeof(float)));
  const auto kernel = split_backward_normed<T, kPack, kStages>;
  const int64_t at_once = blocks_at_once(kernel, kThreads, bytes);
  if (at_once == 0) return false;
  const int64_t heads = split.heads + 2 * split.kv_heads;
  const auto blocks_for_heads = [&](int64_t count) { return (count + threads.y - 1) / threads.y; };
  const int64_t least = blocks_for_heads(heads);
  CHECK(room >= least, "qkv_split_backward: ", scratch.size(), " bytes of scratch for ", heads, " heads of ", width);
  const int64_t most = std::max(least, std::min(room, at_once));
  const int64_t blocks = std::min(most, blocks_for_heads(split.row_count * heads));
  auto* const partials = reinterpret_cast<float*>(scratch.data());
  kernel<<<unsigned(blocks), threads, size_t(bytes), stream>>>(split, elements<const T>(qkv), elements<T>(d_qkv),
                                                               partials);
  check_cuda(cudaGetLastError());
  add_column_sums(stream, partials, blocks, width, width, elements<float>(d_q_norm));
  add_column_sums(stream, partials + blocks * width, blocks, width, width, elements<float>(d_k_norm));
  return true;
}

}  // namespace

void rotary_table(cudaStream_t stream, std::span<const Piece> pieces, double base, const Tensor& table) {
  const int half = int(table.shape[1] / 2);
  if (half == 0) return;
  const dim3 threads(32, kThreads / 32);
  for (const Piece& piece : pieces) {
    if (piece.row_count == 0) continue;
    const int64_t blocks = std::min<int64_t>((piece.row_count + threads.y - 1) / threads.y, 4096);
    fill_rotary_table<<<unsigned(blocks), threads, 0, stream>>>(piece, base, half, elements<float>(table));
    check_cuda(cudaGetLastError());
  }
}

void qkv_split_forward(cudaStream_t stream, const QkvSplit& split, const Tensor& qkv, const Tensor& q,
                       const Tensor& kv) {
  for (const Piece& piece : split.pieces) {
    if (piece.row_count == 0) continue;
    with_kernel(split, qkv.dtype, {qkv.data, q.data, kv.data}, [&](auto type, auto pack, auto norm) {
      using T = decltype(type);
      const dim3 threads = threads_for(split.shape, pack());
      split_forward<T, pack(), norm()><<<blocks_for_rows(piece.row_count, threads), threads, 0, stream>>>(
          split_of<T, T>(split, piece, qkv.rows(), q, kv), elements<const T>(qkv));
    });
    check_cuda(cudaGetLastError());
  }
}

void qkv_split_backward(cudaStream_t stream, const QkvSplit& split, const Tensor& qkv, const Tensor& dq,
                        const Tensor& dkv, std::span<std::byte> scratch, const Tensor& d_qkv,
                        const Tensor& d_q_norm, const Tensor& d_k_norm) {
  for (const Piece& piece : split.pieces) {
    if (piece.row_count == 0) continue;
    with_kernel(
        split, d_qkv.dtype, {qkv.data, dq.data, dkv.data, d_qkv.data}, [&](auto type, auto pack, auto norm) {
          using T = decltype(type);
          const auto here = split_of<T, const float>(split, piece, d_qkv.rows(), dq, dkv);
          if constexpr (norm() == QkNorm::yes) {
            // Neighbouring threads have neighbouring packs of 4 floats of the gradient, whatever T is.
            constexpr int kNormedPack = std::min(pack(), 4);
            const auto launch = [&](auto stages) {
              return launch_normed<T, kNormedPack, stages()>(stream, here, scratch, qkv, d_qkv, d_q_norm, d_k_norm);
            };
            bool is_launched = false;
            if constexpr (kNormedPack > 1) is_launched = launch(std::integral_constant<int, kRowsAhead>());
            if (!is_launched) launch(std::integral_constant<int, 0>());
          } else {
            const dim3 threads = threads_for(split.shape, pack());
            split_backward<T, pack()>
                <<<blocks_for_rows(piece.row_count, threads), threads, 0, stream>>>(here, elements<T>(d_qkv));
            check_cuda(cudaGetLastError());
          }
        });
  }
}

}  // namespace ringlet::cuda
