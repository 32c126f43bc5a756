#include "kernels/cuda/row_groups.h"
#include "kernels/cuda/swiglu.h"

namespace ringlet::cuda {
namespace {

__device__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

template <class T, int kPack>
__global__ void forward(const T* gate_up, T* y, int64_t rows, int64_t width) {
  const int64_t row_step = int64_t(gridDim.x) * blockDim.y;
  for (int64_t row = int64_t(blockIdx.x) * blockDim.y + threadIdx.y; row < rows; row += row_step) {
    for (int64_t first = int64_t(threadIdx.x) * kPack; first < width; first += int64_t(blockDim.x) * kPack) {
      float gate[kPack], up[kPack], product[kPack];
      load_floats(gate_up + row * 2 * width + first, gate);
      load_floats(gate_up + row * 2 * width + width + first, up);
#pragma unroll
      for (int i = 0; i < kPack; ++i) product[i] = gate[i] * sigmoid(gate[i]) * up[i];
      store_floats(product, y + row * width + first);
    }
  }
}

// gate_up and d_gate_up may be the same: a thread writes what it alone has read.
// silu'(g) = s + g * s * (1 - s) with s = sigmoid(g).
template <class T, int kPack>
__global__ void backward(const T* gate_up, const T* dy, T* d_gate_up, int64_t rows, int64_t width) {
  const int64_t row_step = int64_t(gridDim.x) * blockDim.y;
  for (int64_t row = int64_t(blockIdx.x) * blockDim.y + threadIdx.y; row < rows; row += row_step) {
    for (int64_t first = int64_t(threadIdx.x) * kPack; first < width; first += int64_t(blockDim.x) * kPack) {
      float gate[kPack], up[kPack], gradient[kPack];
      load_floats(gate_up + row * 2 * width + first, gate);
      load_floats(gate_up + row * 2 * width + width + first, up);
      load_floats(dy + row * width + first, gradient);
#pragma unroll
      for (int i = 0; i < kPack; ++i) {
        const float s = sigmoid(gate[i]), silu = gate[i] * s;
        gate[i] = gradient[i] * up[i] * (silu * (1.0f - s) + s);
        up[i] = gradient[i] * silu;
      }
      store_floats(gate, d_gate_up + row * 2 * width + first);
      store_floats(up, d_gate_up + row * 2 * width + width + first);
    }
  }
}

/// Two packs for each thread of a row, up to a whole block.
RowGroups groups_of(int64_t packs) { return row_groups(packs, 2, kThreads); }

}  // namespace

void swiglu_forward(cudaStream_t stream, const Tensor& gate_up, const Tensor& y) {
  const int64_t rows = y.rows(), width = y.shape[1];
  if (y.size() == 0) return;
  with_activations(y.dtype, [&](auto type) {
    using T = decltype(type);
    with_packs<T>(width, {gate_up.data, y.data}, [&](auto pack) {
      const RowGroups groups = groups_of(width / pack());
      forward<T, pack()><<<blocks_of_rows(rows, groups), groups.threads, 0, stream>>>(
          elements<const T>(gate_up), elements<T>(y), rows, width);
    });
  });
  check_cuda(cudaGetLastError());
}

void swiglu_backward(cudaStream_t stream, const Tensor& gate_up, const Tensor& dy, const Tensor& d_gate_up) {
  const int64_t rows = dy.rows(), width = dy.shape[1];
  if (dy.size() == 0) return;
  with_activations(dy.dtype, [&](auto type) {
    using T = decltype(type);
    with_packs<T>(width, {gate_up.data, dy.data, d_gate_up.data}, [&](auto pack) {
      const RowGroups groups = groups_of(width / pack());
      backward<T, pack()><<<blocks_of_rows(rows, groups), groups.threads, 0, stream>>>(
          elements<const T>(gate_up), elements<const T>(dy), elements<T>(d_gate_up), rows, width);
    });
  });
  check_cuda(cudaGetLastError());
}

}  // namespace ringlet::cuda
