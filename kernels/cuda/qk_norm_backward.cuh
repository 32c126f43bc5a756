#pragma once

#include "kernels/cuda/pack_ring.h"
#include "kernels/cuda/rope_heads.cuh"

/// The backward pass of qkv_split with QK-norm.
namespace ringlet::cuda {

/// Rows that a thread's group fetches ahead in the backward pass of QK-norm.
inline constexpr int kRowsAhead = 1;

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

}  // namespace ringlet::cuda
