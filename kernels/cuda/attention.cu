// Which kernels compute attention, and what comes before and after them: start, finish, delta.
#include <cmath>
#include <string>

#include "kernels/cuda/attention.h"
#include "kernels/cuda/attention_tiles.cuh"
#include "kernels/cuda/cuda_raii.h"

namespace ringlet::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kLanesPerRow = 8;
constexpr int kRowsPerBlock = kThreads / kLanesPerRow;

/// 10 * major + minor of the current device.
int compute_capability() {
  int device = 0, major = 0, minor = 0;
  check_cuda(cudaGetDevice(&device));
  check_cuda(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
  check_cuda(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device));
  return 10 * major + minor;
}

/// The gradient of keys by mma wants 162 KiB of shared memory where head_dim is 128: an A100 has that, smaller GPUs have 99.
bool mma_fits(const HeadShape& shape) {
  constexpr int kMostBytes = 166'000;
  int device = 0, bytes = 0;
  check_cuda(cudaGetDevice(&device));
  check_cuda(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  return shape.head_dim == 64 || bytes >= kMostBytes;
}

void check_tensor_core_path(const char* path, const HeadShape& shape, Dtype dtype) {
  CHECK(dtype == Dtype::bf16, "attention by ", path, " is for bf16, not for ", name_of(dtype));
  CHECK(shape.head_dim == 64 || shape.head_dim == 128, "attention by ", path, " has head_dim 64 or 128, not ",
        shape.head_dim);
}

/// The path that serves; never automatic. Throws Error when the one that is asked for does not.
CudaAttention chosen(CudaAttention path, const HeadShape& shape, Dtype dtype) {
  if (path == CudaAttention::plain) return path;
  const int capability = compute_capability();
  const bool tensor_cores = dtype == Dtype::bf16 && (shape.head_dim == 64 || shape.head_dim == 128);
  if (path == CudaAttention::automatic) {
    if (!tensor_cores || capability < 80) return CudaAttention::plain;
    if (capability == 90) return CudaAttention::wgmma;
    return mma_fits(shape) ? CudaAttention::mma : CudaAttention::plain;
  }
  if (path == CudaAttention::mma) {
    check_tensor_core_path("mma", shape, dtype);
    CHECK(capability >= 80, "attention by mma needs compute capability 8.0, not ", capability / 10, '.',
          capability % 10);
    CHECK(mma_fits(shape), "attention by mma with head_dim 128 needs 162 KiB of shared memory");
  } else {
    check_tensor_core_path("wgmma", shape, dtype);
    CHECK(capability == 90, "attention by wgmma needs compute capability 9.0 exactly, not ", capability / 10,
          '.', capability % 10);
  }
  return path;
}

// Eight lanes share a row of a head; blocks go through the heads of some rows before the next rows, because
// rows of `output` hold all heads.

struct RowOfHead {
  int64_t row;
  int32_t head, lane;
};

__device__ __forceinline__ RowOfHead own_row(int32_t heads) {
  const int32_t block = int32_t(blockIdx.x), thread = int32_t(threadIdx.x);
  return {int64_t(block / heads) * kRowsPerBlock + thread / kLanesPerRow, block % heads,
          thread % kLanesPerRow};
}

unsigned row_blocks(int64_t rows, int64_t heads) {
  return unsigned((rows + kRowsPerBlock - 1) / kRowsPerBlock * heads);
}

__global__ void start_maximum(float* maximum, int64_t count) {
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i < count) maximum[i] = -INFINITY;
}

template <class T>
__global__ void finish(AttentionState state, int64_t rows, int32_t heads, int32_t head_dim, T* output,
                       float* lse) {
  const RowOfHead at = own_row(heads);
  if (at.row >= rows) return;
  const int64_t i = at.head * rows + at.row;
  const float sum = reinterpret_cast<const float*>(state.sum.data)[i];
  const float factor = sum == 0 ? 0.0f : 1 / sum;
  const float* const from = reinterpret_cast<const float*>(state.output.data) + i * head_dim;
  T* const to = output + (at.row * heads + at.head) * head_dim;
  for (int32_t x = 8 * at.lane; x < head_dim; x += 8 * kLanesPerRow) {
    Float8 v = load8(from + x);
    v.a = {v.a.x * factor, v.a.y * factor, v.a.z * factor, v.a.w * factor};
    v.b = {v.b.x * factor, v.b.y * factor, v.b.z * factor, v.b.w * factor};
    store8(v, to + x);
  }
  if (at.lane > 0) return;
  constexpr double kLn2 = 0.693147180559945309;
  const double maximum = reinterpret_cast<const float*>(state.maximum.data)[i];
  lse[i] = sum == 0 ? -INFINITY : float(kLn2 * (maximum + double(log2f(sum))));
}

template <class T>
__global__ void delta_of_rows(const T* output, const T* d_output, int64_t rows, int32_t heads,
                              int32_t head_dim, float* delta) {
  const RowOfHead at = own_row(heads);
  const int64_t begin = (at.row * heads + at.head) * head_dim;
  float sum = 0;
  if (at.row < rows) {
    for (int32_t x = 8 * at.lane; x < head_dim; x += 8 * kLanesPerRow) {
      const Float8 o = load8(output + begin + x), d = load8(d_output + begin + x);
      sum += (o.a.x * d.a.x + o.a.y * d.a.y) + (o.a.z * d.a.z + o.a.w * d.a.w) +
             ((o.b.x * d.b.x + o.b.y * d.b.y) + (o.b.z * d.b.z + o.b.w * d.b.w));
    }
  }
  for (int distance = kLanesPerRow / 2; distance > 0; distance /= 2) {
    sum += __shfl_xor_sync(0xffffffffu, sum, distance);
  }
  if (at.lane == 0 && at.row < rows) delta[at.head * rows + at.row] = sum;
}

}  // namespace

void attention_start(cudaStream_t stream, const AttentionState& state) {
  const int64_t count = state.maximum.size();
  if (count == 0) return;
  check_cuda(cudaMemsetAsync(state.output.data, 0, size_t(state.output.bytes()), stream));
  check_cuda(cudaMemsetAsync(state.sum.data, 0, size_t(state.sum.bytes()), stream));
  start_maximum<<<unsigned((count + kThreads - 1) / kThreads), kThreads, 0, stream>>>(
      elements<float>(state.maximum), count);
  check_cuda(cudaGetLastError());
}

void attention_forward(cudaStream_t stream, CudaAttention path, const AttentionStep& step, const Tensor& q,
                       const Tensor& kv, const AttentionState& state) {
  const CudaAttention serving = chosen(path, step.shape, q.dtype);
  if (step.queries.row_count == 0 || step.keys.row_count == 0) return;
  if (serving == CudaAttention::wgmma)
    wgmma::attention_forward(stream, step, q, kv, state);
  else if (serving == CudaAttention::mma)
    mma::attention_forward(stream, step, q, kv, state);
  else
    plain::attention_forward(stream, step, q, kv, state);
}

void attention_backward(cudaStream_t stream, CudaAttention path, const AttentionStep& step, const Tensor& q,
                        const Tensor& kv, const AttentionGradient& gradient, const Tensor& dq, Write write,
                        const Tensor& dkv) {
  const CudaAttention serving = chosen(path, step.shape, q.dtype);
  const bool any = step.queries.row_count > 0 && step.keys.row_count > 0;
  if (any && serving == CudaAttention::wgmma)
    return wgmma::attention_backward(stream, step, q, kv, gradient, dq, write, dkv);
  if (write == Write::set) check_cuda(cudaMemsetAsync(dkv.data, 0, size_t(dkv.bytes()), stream));
  if (!any) return;
  if (serving == CudaAttention::mma)
    mma::attention_backward(stream, step, q, kv, gradient, dq, dkv);
  else
    plain::attention_backward(stream, step, q, kv, gradient, dq, dkv);
}

void attention_finish(cudaStream_t stream, const HeadShape& shape, const AttentionState& state,
                      const Tensor& output, const Tensor& lse) {
  const int64_t rows = output.rows();
  if (rows == 0) return;
  const auto launch = [&]<class T>(T* to) {
    finish<T><<<row_blocks(rows, shape.heads), kThreads, 0, stream>>>(
        state, rows, int32_t(shape.heads), int32_t(shape.head_dim), to, elements<float>(lse));
  };
  if (output.dtype == Dtype::bf16)
    launch(elements<__nv_bfloat16>(output));
  else
    launch(elements<float>(output));
  check_cuda(cudaGetLastError());
}

void attention_delta(cudaStream_t stream, const HeadShape& shape, const Tensor& output,
                     const Tensor& d_output, const Tensor& delta) {
  const int64_t rows = output.rows();
  if (rows == 0) return;
  const auto launch = [&]<class T>(const T* from) {
    delta_of_rows<T><<<row_blocks(rows, shape.heads), kThreads, 0, stream>>>(
        from, elements<T>(d_output), rows, int32_t(shape.heads), int32_t(shape.head_dim),
        elements<float>(delta));
  };
  if (output.dtype == Dtype::bf16)
    launch(elements<const __nv_bfloat16>(output));
  else
    launch(elements<const float>(output));
  check_cuda(cudaGetLastError());
}

}  // namespace ringlet::cuda
