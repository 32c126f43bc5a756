#include "kernels/cuda/rope.h"
#include "kernels/cuda/row_groups.h"
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

enum class QkNorm { no, yes };

/// What both directions share. T is the type of activations; U that of q and kv, or of their gradients.
template <class T, class U>
struct Split {
  int heads, kv_heads, head_dim;
  int64_t first_row, row_count;  // of the piece
  int64_t all_rows;
  const float* rotary;
  const T *q_norm, *k_norm;
  float epsilon;
  U *q, *kv;

  __device__ int all_heads() const { return heads + 2 * kv_heads; }
  __device__ bool is_rotated(int head) const { return head < heads + kv_heads; }
  __device__ const T* norm_weight(int head) const { return head < heads ? q_norm : k_norm; }
  /// A head of a row of the fused projection.
  __device__ int64_t fused_offset(int64_t row, int head) const {
    return ((first_row + row) * all_heads() + head) * head_dim;
  }
  /// Where it stands in q or kv.
  __device__ U* split_row(int64_t row, int head) const {
    if (head < heads) return q + (int64_t(head) * all_rows + first_row + row) * head_dim;
    return kv + (2 * kv_heads * first_row + (head - heads) * row_count + row) * head_dim;
  }
};

// A head of a row belongs to a group of 1, 2, 4, ... 32 threads along x; heads stand along y, rows along z. A
// thread has up to kCount packs of the head's first half, and those of the second half that they are paired
// with.
template <int kPack>
constexpr int kCount = 8 / kPack;  // enough for shapes::kMaxHeadDim

template <int kPack>
using Halves = float[2][kCount<kPack>][kPack];

template <int kPack, class Body>
__device__ void for_halves(int head_dim, const Body& body) {
  for_packs<kCount<kPack>>(head_dim / 2 / kPack, [&](int i, int64_t pack) {
    body(0, i, int(pack) * kPack);
    body(1, i, head_dim / 2 + int(pack) * kPack);
  });
}

/// The sum over the threads of a group; all of them get the same bits.
__device__ float sum_over_group(float value) {
  const unsigned lanes = blockDim.x;
  const unsigned thread = (threadIdx.z * blockDim.y + threadIdx.y) * lanes + threadIdx.x;
  const unsigned first = thread % 32 / lanes * lanes;
  const unsigned group = (lanes == 32 ? 0xffffffffu : (1u << lanes) - 1) << first;
  for (unsigned distance = lanes / 2; distance > 0; distance /= 2) {
    value += __shfl_xor_sync(group, value, int(distance));
  }
  return value;
}

template <int kPack>
__device__ float inverse_rms(const Halves<kPack>& x, int head_dim, float epsilon) {
  float sum = 0;
  for_halves<kPack>(head_dim, [&](int half, int i, int) {
#pragma unroll
    for (int j = 0; j < kPack; ++j) sum = fmaf(x[half][i][j], x[half][i][j], sum);
  });
  return 1.0f / sqrtf(sum_over_group(sum) / float(head_dim) + epsilon);
}

/// Turns the pairs by the row's angles, or back (direction -1).
template <int kPack>
__device__ void rotate(const float* rotary, int head_dim, float direction, Halves<kPack>& x) {
  for_packs<kCount<kPack>>(head_dim / 2 / kPack, [&](int i, int64_t pack) {
    float cosine[kPack], sine[kPack];
    load_floats(rotary + pack * kPack, cosine);
    load_floats(rotary + head_dim / 2 + pack * kPack, sine);
#pragma unroll
    for (int j = 0; j < kPack; ++j) {
      const float first = x[0][i][j], second = x[1][i][j], turn = sine[j] * direction;
      x[0][i][j] = first * cosine[j] - second * turn;
      x[1][i][j] = second * cosine[j] + first * turn;
    }
  });
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
        if constexpr (kNorm == QkNorm::yes) {
          const float scale = inverse_rms<kPack>(x, split.head_dim, split.epsilon);
          const T* const weight = split.norm_weight(head);
          for_halves<kPack>(split.head_dim, [&](int half, int i, int column) {
            float weights[kPack];
            load_floats(weight + column, weights);
#pragma unroll
            for (int j = 0; j < kPack; ++j) x[half][i][j] *= scale * weights[j];
          });
        }
        rotate<kPack>(split.rotary + (split.first_row + row) * split.head_dim, split.head_dim, 1.0f, x);
      }
      T* const to = split.split_row(row, head);
      for_halves<kPack>(split.head_dim,
                        [&](int half, int i, int column) { store_floats(x[half][i], to + column); });
    }
  }
}

/// The gradient of RMSNorm of one head (see norm.cu): gradient, of the output, becomes that of the input x.
template <class T, int kPack>
__device__ void norm_backward(const Halves<kPack>& x, const T* weight, int head_dim, float epsilon,
                              Halves<kPack>& gradient, Halves<kPack>& d_weight) {
  const float scale = inverse_rms<kPack>(x, head_dim, epsilon);
  float sum = 0;
  for_halves<kPack>(head_dim, [&](int half, int i, int column) {
    float weights[kPack];
    load_floats(weight + column, weights);
#pragma unroll
    for (int j = 0; j < kPack; ++j) {
      const float product = x[half][i][j] * gradient[half][i][j];
      d_weight[half][i][j] = fmaf(product, scale, d_weight[half][i][j]);
      sum = fmaf(product, weights[j], sum);
    }
  });
  const float pull = sum_over_group(sum) / float(head_dim) * scale * scale * scale;
  for_halves<kPack>(head_dim, [&](int half, int i, int column) {
    float weights[kPack];
    load_floats(weight + column, weights);
#pragma unroll
    for (int j = 0; j < kPack; ++j) {
      gradient[half][i][j] = weights[j] * gradient[half][i][j] * scale - x[half][i][j] * pull;
    }
  });
}

/// Adds up what the groups of the block have, in their order, into partial: [head_dim].
template <int kPack>
__device__ void store_partial(const Halves<kPack>& d_weight, int head_dim, float* partial) {
  // A block of kThreads has no more than 2 * kCount * kPack = 16 elements in each thread.
  __shared__ float of_groups[16 * kThreads];
  const int group = int(threadIdx.z * blockDim.y + threadIdx.y), groups = int(blockDim.y * blockDim.z);
  for_halves<kPack>(head_dim, [&](int half, int i, int column) {
#pragma unroll
    for (int j = 0; j < kPack; ++j) of_groups[group * head_dim + column + j] = d_weight[half][i][j];
  });
  __syncthreads();
  const int thread = group * int(blockDim.x) + int(threadIdx.x);
  for (int column = thread; column < head_dim; column += groups * int(blockDim.x)) {
    float sum = of_groups[column];
    for (int other = 1; other < groups; ++other) sum += of_groups[other * head_dim + column];
    partial[column] = sum;
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

/// The heads of q, of k or of v, and how many blocks take them.
struct Section { int first_head, heads, blocks; };
struct Sections { Section q, k, v; };

// With QK-norm. Each block takes heads of one section, as they come, row by row; the next one is on its way
// while one is computed. partials: [blocks of q and k, head_dim], set to the blocks' parts of d_q_norm and
// d_k_norm. qkv and d_qkv may be the same: a thread writes what it alone has read.
template <class T, int kPack>
__global__ void __launch_bounds__(kThreads, 2)
    split_backward_normed(Split<T, const float> split, Sections sections, const T* qkv, T* d_qkv,
                          float* partials) {
  int block = int(blockIdx.x);
  const bool is_q = block < sections.q.blocks;
  if (!is_q) block -= sections.q.blocks;
  const bool is_k = !is_q && block < sections.k.blocks, is_normed = is_q || is_k;
  if (!is_normed) block -= sections.k.blocks;
  const Section section = is_q ? sections.q : is_k ? sections.k : sections.v;
  const int64_t first = int64_t(block) * blockDim.y + threadIdx.y;
  const int64_t step = int64_t(section.blocks) * blockDim.y;
  const int64_t row_step = step / section.heads;
  const int head_step = int(step % section.heads);
  int64_t row = first / section.heads;
  int head = int(first % section.heads);  // of the section

  Halves<kPack> coming, d_weight = {};
  Pack<T, kPack> coming_x[2][kCount<kPack>];
  const auto fetch = [&] {
    if (row >= split.row_count) return;
    const float* const from = split.split_row(row, section.first_head + head);
    const T* const x_from = qkv + split.fused_offset(row, section.first_head + head);
    for_halves<kPack>(split.head_dim, [&](int half, int i, int column) {
      load_floats(from + column, coming[half][i]);
      if (is_normed) coming_x[half][i] = load_pack<kPack>(x_from + column);
    });
  };
  fetch();
  while (row < split.row_count) {
    const int64_t own_row = row, fused = split.fused_offset(row, section.first_head + head);
    Halves<kPack> gradient, x;
    for_halves<kPack>(split.head_dim, [&](int half, int i, int) {
#pragma unroll
      for (int j = 0; j < kPack; ++j) {
        gradient[half][i][j] = coming[half][i][j];
        x[half][i][j] = is_normed ? widen(coming_x[half][i].values[j]) : 0.0f;
      }
    });
    row += row_step, head += head_step;
    if (head >= section.heads) ++row, head -= section.heads;
    fetch();
    if (is_normed) {
      rotate<kPack>(split.rotary + (split.first_row + own_row) * split.head_dim, split.head_dim, -1.0f,
                    gradient);
      norm_backward<T, kPack>(x, is_q ? split.q_norm : split.k_norm, split.head_dim, split.epsilon, gradient,
                              d_weight);
    }
    for_halves<kPack>(split.head_dim, [&](int half, int i, int column) {
      store_floats(gradient[half][i], d_qkv + fused + column);
    });
  }
  if (is_normed) store_partial<kPack>(d_weight, split.head_dim, partials + blockIdx.x * split.head_dim);
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

/// Blocks in proportion to the bytes of a section, no more than run at once, `most` at most.
Sections sections_of(const HeadShape& shape, int64_t rows, int64_t groups, int64_t most) {
  const int64_t bytes_of_q = 8 * shape.heads, bytes_of_k = 8 * shape.kv_heads,
                bytes_of_v = 6 * shape.kv_heads;
  const auto section = [&](int64_t first_head, int64_t heads, int64_t bytes) {
    const int64_t share = most * bytes / (bytes_of_q + bytes_of_k + bytes_of_v);
    const int64_t blocks = std::clamp<int64_t>(share, 1, (rows * heads + groups - 1) / groups);
    return Section{int(first_head), int(heads), int(blocks)};
  };
  return {section(0, shape.heads, bytes_of_q), section(shape.heads, shape.kv_heads, bytes_of_k),
          section(shape.heads + shape.kv_heads, shape.kv_heads, bytes_of_v)};
}

template <class T, int kPack>
void launch_normed(cudaStream_t stream, const Split<T, const float>& split, const HeadShape& shape,
                   std::span<std::byte> scratch, const Tensor& qkv, const Tensor& d_qkv,
                   const Tensor& d_q_norm, const Tensor& d_k_norm) {
  const unsigned across = threads_for(shape, kPack).x;
  const dim3 threads(across, kThreads / across);
  const auto kernel = split_backward_normed<T, kPack>;
  int resident = 0;
  check_cuda(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, kernel, kThreads, 0));
  const int64_t width = shape.head_dim, room = int64_t(scratch.size() / sizeof(float)) / width;
  CHECK(room >= 2, "qkv_split_backward: ", scratch.size(), " bytes of scratch for rows of ", width);
  const Sections sections = sections_of(shape, split.row_count, threads.y,
                                        std::min(room, int64_t(std::max(resident, 1)) * multiprocessors()));
  const auto &[q, k, v] = sections;
  auto* const partials = reinterpret_cast<float*>(scratch.data());
  kernel<<<unsigned(q.blocks + k.blocks + v.blocks), threads, 0, stream>>>(
      split, sections, elements<const T>(qkv), elements<T>(d_qkv), partials);
  check_cuda(cudaGetLastError());
  add_column_sums(stream, partials, q.blocks, width, width, elements<float>(d_q_norm));
  add_column_sums(stream, partials + q.blocks * width, k.blocks, width, width, elements<float>(d_k_norm));
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
            launch_normed<T, pack()>(stream, here, split.shape, scratch, qkv, d_qkv, d_q_norm, d_k_norm);
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
