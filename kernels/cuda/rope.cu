#include "kernels/cuda/pack_ring.h"
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

/// Rows that a thread's group fetches ahead in the backward pass of QK-norm.
constexpr int kRowsAhead = 1;

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

/// A row's angles: cosines, then sines.
template <int kPack>
__device__ void load_angles(const float* rotary, int head_dim, Halves<kPack>& angles) {
  for_halves<kPack>(head_dim,
                    [&](int half, int i, int column) { load_floats(rotary + column, angles[half][i]); });
}

/// Turns pairs by angles, or back (direction -1).
template <int kPack>
__device__ void turn(const float (&cosine)[kPack], const float (&sine)[kPack], float direction,
                     float (&first)[kPack], float (&second)[kPack]) {
#pragma unroll
  for (int j = 0; j < kPack; ++j) {
    const float x = first[j], y = second[j], along = sine[j] * direction;
    first[j] = x * cosine[j] - y * along;
    second[j] = y * cosine[j] + x * along;
  }
}

template <int kPack>
__device__ void rotate(const Halves<kPack>& angles, int head_dim, float direction, Halves<kPack>& x) {
  for_packs<kCount<kPack>>(head_dim / 2 / kPack, [&](int i, int64_t) {
    turn<kPack>(angles[0][i], angles[1][i], direction, x[0][i], x[1][i]);
  });
}

/// The angles are read pack by pack, which takes fewer registers.
template <int kPack>
__device__ void rotate(const float* rotary, int head_dim, float direction, Halves<kPack>& x) {
  for_packs<kCount<kPack>>(head_dim / 2 / kPack, [&](int i, int64_t pack) {
    float cosine[kPack], sine[kPack];
    load_floats(rotary + pack * kPack, cosine);
    load_floats(rotary + head_dim / 2 + pack * kPack, sine);
    turn<kPack>(cosine, sine, direction, x[0][i], x[1][i]);
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

/// Adds up, in their order, what the groups of the block have for q, and what they have for k. of_groups: their
/// d_weight, [groups, head_dim], in shared memory; first_head: of group 0, the next groups have the next heads.
template <class T>
__device__ void store_partials(const Split<T, const float>& split, const float* of_groups, int first_head,
                               float* partials) {
  const int groups = int(blockDim.y), threads = groups * int(blockDim.x);
  for (int column = int(threadIdx.y * blockDim.x + threadIdx.x); column < split.head_dim; column += threads) {
    float sums[2] = {0, 0};  // q, k
    for (int group = 0, head = first_head; group < groups; ++group) {
      if (split.is_rotated(head)) sums[head < split.heads ? 0 : 1] += of_groups[group * split.head_dim + column];
      if (++head == split.all_heads()) head = 0;
    }
    partials[int64_t(blockIdx.x) * split.head_dim + column] = sums[0];
    partials[int64_t(gridDim.x + blockIdx.x) * split.head_dim + column] = sums[1];
  }
}

/// What a group reads for its head of a row: the gradient, and for a head with a norm x and the angles. Fetched
/// kStages rows ahead; 0: when it is read.
template <class T, int kPack, int kStages>
class HeadInputs {
 public:
  using Ring = PackRing<kStages, 3 * 2 * kCount<kPack>>;

  __device__ HeadInputs(unsigned char* shared, const Split<T, const float>& split, const T* qkv, int head)
      : ring_(shared), split_(split), qkv_(qkv), head_(head) {}
  __device__ void fetch(int64_t row) {
    if constexpr (kStages > 0) {
      if (row < split_.row_count) {
        for_halves<kPack>(split_.head_dim, [&](int half, int i, int column) {
          ring_.template fetch<kPack>(slot(0, half, i), gradient_at(row) + column);
          if (!split_.is_rotated(head_)) return;
          ring_.template fetch<kPack>(slot(1, half, i), x_at(row) + column);
          ring_.template fetch<kPack>(slot(2, half, i), angles_at(row) + column);
        });
      }
      ring_.close();
    }
  }
  __device__ void wait() const {
    if constexpr (kStages > 0) ring_.wait();
  }
  __device__ void read_gradient(int64_t row, Halves<kPack>& to) const { read(0, gradient_at(row), to); }
  __device__ void read_x(int64_t row, Halves<kPack>& to) const { read(1, x_at(row), to); }
  __device__ void read_angles(int64_t row, Halves<kPack>& to) const { read(2, angles_at(row), to); }

 private:
  __device__ const float* gradient_at(int64_t row) const { return split_.split_row(row, head_); }
  __device__ const T* x_at(int64_t row) const { return qkv_ + split_.fused_offset(row, head_); }
  __device__ const float* angles_at(int64_t row) const {
    return split_.rotary + (split_.first_row + row) * split_.head_dim;
  }
  static __device__ int slot(int input, int half, int i) { return (input * 2 + half) * kCount<kPack> + i; }
  template <class Stored>
  __device__ void read(int input, const Stored* from, Halves<kPack>& to) const {
    for_halves<kPack>(split_.head_dim, [&](int half, int i, int column) {
      if constexpr (kStages > 0) {
        const auto pack = ring_.template read<Pack<Stored, kPack>>(slot(input, half, i));
#pragma unroll
        for (int j = 0; j < kPack; ++j) to[half][i][j] = widen(pack.values[j]);
      } else {
        load_floats(from + column, to[half][i]);
      }
    });
  }

  Ring ring_;
  const Split<T, const float>& split_;
  const T* const qkv_;
  const int head_;
};

// With QK-norm. Groups have heads in turn, each the same head of all its rows; those that are too many for the
// heads have none. partials: [2, blocks, head_dim], set to the blocks' parts of d_q_norm and of d_k_norm. qkv
// and d_qkv may be the same: a thread writes what it alone has read.
template <class T, int kPack, int kStages>
__global__ void __launch_bounds__(kThreads, 2)
    split_backward_normed(Split<T, const float> split, const T* qkv, T* d_qkv, float* partials) {
  extern __shared__ __align__(16) unsigned char shared[];
  const int first_group = int(blockIdx.x * blockDim.y), group = first_group + int(threadIdx.y);
  const int row_step = int(gridDim.x * blockDim.y) / split.all_heads();
  const int head = group % split.all_heads();
  const bool is_used = group < row_step * split.all_heads(), is_normed = split.is_rotated(head);
  int64_t row = is_used ? group / split.all_heads() : split.row_count;

  Halves<kPack> d_weight = {};
  HeadInputs<T, kPack, kStages> inputs(shared, split, qkv, head);
#pragma unroll
  for (int stage = 0; stage < kStages; ++stage) inputs.fetch(row + stage * row_step);
  for (; row < split.row_count; row += row_step) {
    Halves<kPack> gradient, x, angles;
    inputs.wait();
    inputs.read_gradient(row, gradient);
    if (is_normed) {
      inputs.read_x(row, x);
      inputs.read_angles(row, angles);
    }
    inputs.fetch(row + int64_t(kStages) * row_step);
    if (is_normed) {
      rotate<kPack>(angles, split.head_dim, -1.0f, gradient);
      norm_backward<T, kPack>(x, split.norm_weight(head), split.head_dim, split.epsilon, gradient, d_weight);
    }
    for_halves<kPack>(split.head_dim, [&](int half, int i, int column) {
      store_floats(gradient[half][i], d_qkv + split.fused_offset(row, head) + column);
    });
  }
  __syncthreads();  // what was fetched ahead has been read
  auto* const of_groups = reinterpret_cast<float*>(shared);
  for_halves<kPack>(split.head_dim, [&](int half, int i, int column) {
    store_floats(d_weight[half][i], of_groups + int(threadIdx.y) * split.head_dim + column);
  });
  __syncthreads();
  store_partials(split, of_groups, first_group % split.all_heads(), partials);
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
            if (kNormedPack == 1 || !launch(std::integral_constant<int, kNormedPack == 1 ? 0 : kRowsAhead>()))
              launch(std::integral_constant<int, 0>());
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
