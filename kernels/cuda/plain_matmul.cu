#include "kernels/cuda/matmul.h"
#include "kernels/cuda/packs.h"

namespace ringlet::cuda {
namespace {

constexpr int kTile = 64;   // rows and columns of out of one block
constexpr int kDepth = 16;  // of k at a time
constexpr int kSide = 4;    // rows and columns of out of one thread
constexpr int kAcross = kTile / kSide;
static_assert(kAcross * kAcross == kThreads);

/// An operand by its strides: element (i, k) is at [i * outer + k * inner], whatever its transposition.
template <class T>
struct Operand {
  const T* at;
  int64_t outer, inner, size;  // size: how many i
};

/// Elements [first, first + kTile) x [first_k, first_k + kDepth), widened; zeros outside.
template <class T>
__device__ void load_tile(const Operand<T>& operand, int64_t first, int64_t first_k, int64_t end_k,
                          float (&tile)[kDepth][kTile + 1]) {
  const int thread = int(threadIdx.y) * kAcross + int(threadIdx.x);
  for (int element = thread; element < kTile * kDepth; element += kThreads) {
    // Neighbouring threads read neighbouring addresses.
    const bool along_k = operand.inner == 1;
    const int i = along_k ? element / kDepth : element % kTile,
              k = along_k ? element % kDepth : element / kTile;
    const bool inside = first + i < operand.size && first_k + k < end_k;
    tile[k][i] =
        inside ? widen(operand.at[(first + i) * operand.outer + (first_k + k) * operand.inner]) : 0.0f;
  }
}

template <class T, class U>
__global__ void __launch_bounds__(kThreads)
    multiply(Operand<T> a, Operand<T> b, int64_t depth, Write write, U* out, int64_t out_stride) {
  __shared__ float a_tile[kDepth][kTile + 1], b_tile[kDepth][kTile + 1];
  const int64_t column_tiles = (b.size + kTile - 1) / kTile;
  const int64_t first_row = blockIdx.x / column_tiles * kTile,
                first_column = blockIdx.x % column_tiles * kTile;
  float sums[kSide][kSide] = {};
  for (int64_t first_k = 0; first_k < depth; first_k += kDepth) {
    load_tile(a, first_row, first_k, depth, a_tile);
    load_tile(b, first_column, first_k, depth, b_tile);
    __syncthreads();
#pragma unroll
    for (int k = 0; k < kDepth; ++k) {
#pragma unroll
      for (int i = 0; i < kSide; ++i) {
#pragma unroll
        for (int j = 0; j < kSide; ++j) {
          sums[i][j] =
              fmaf(a_tile[k][threadIdx.y + i * kAcross], b_tile[k][threadIdx.x + j * kAcross], sums[i][j]);
        }
      }
    }
    __syncthreads();
  }
#pragma unroll
  for (int i = 0; i < kSide; ++i) {
#pragma unroll
    for (int j = 0; j < kSide; ++j) {
      const int64_t row = first_row + threadIdx.y + i * kAcross,
                    column = first_column + threadIdx.x + j * kAcross;
      if (row >= a.size || column >= b.size) continue;
      U* const to = out + row * out_stride + column;
      *to = round_to<U>(write == Write::add ? widen(*to) + sums[i][j] : sums[i][j]);
    }
  }
}

}  // namespace

void plain_matmul(cudaStream_t stream, const shapes::MatmulSizes& sizes, const Tensor& a,
                  Transpose transpose_a, const Tensor& b, Transpose transpose_b, Write write,
                  const Tensor& out) {
  const auto tiles = [](int64_t size) { return (size + kTile - 1) / kTile; };
  const int64_t blocks = tiles(sizes.m) * tiles(sizes.n);
  if (blocks == 0) return;
  const auto launch = [&](auto type, auto out_type) {
    using T = decltype(type);
    using U = decltype(out_type);
    const bool a_turned = transpose_a == Transpose::yes, b_turned = transpose_b == Transpose::yes;
    const Operand<T> rows{elements<const T>(a), a_turned ? 1 : a.row_stride, a_turned ? a.row_stride : 1,
                          sizes.m};
    const Operand<T> columns{elements<const T>(b), b_turned ? b.row_stride : 1, b_turned ? 1 : b.row_stride,
                             sizes.n};
    multiply<T, U><<<unsigned(blocks), dim3(kAcross, kAcross), 0, stream>>>(rows, columns, sizes.k, write,
                                                                            elements<U>(out), out.row_stride);
  };
  if (a.dtype == Dtype::f32)
    launch(float{}, float{});
  else if (out.dtype == Dtype::f32)
    launch(__nv_bfloat16{}, float{});
  else
    launch(__nv_bfloat16{}, __nv_bfloat16{});
  check_cuda(cudaGetLastError());
}

}  // namespace ringlet::cuda
