#pragma once

#include <cstdint>

#include "kernels/cuda/row_groups.h"

/// How threads share out the heads of rows: what both directions of qkv_split have in common.
namespace ringlet::cuda {

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
__device__ inline float sum_over_group(float value) {
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

}  // namespace ringlet::cuda
