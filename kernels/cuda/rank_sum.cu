#include "kernels/cuda/rank_sum.h"

#include <algorithm>

#include "kernels/cuda/cuda_raii.h"

namespace ringlet::cuda {
namespace {

constexpr int kThreads = 256, kMaxBlocks = 1024;

struct SumPointers {
  const std::byte* inputs[kMostSummed];
  std::byte* outputs[kMostSummed];
  int input_count, output_count;
};

__device__ void add_to(float& sum, float value) { sum += value; }
__device__ void add_to(double& sum, double value) { sum += value; }
__device__ void add_to(float4& sum, float4 value) {
  sum.x += value.x, sum.y += value.y, sum.z += value.z, sum.w += value.w;
}
__device__ void add_to(double2& sum, double2 value) { sum.x += value.x, sum.y += value.y; }

/// A thread reads all inputs of its elements before it writes, so that an output may be an input. V: element or vector.
template <class V>
__global__ void sum_kernel(const __grid_constant__ SumPointers pointers, int64_t count) {
  for (int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i < count; i += int64_t(gridDim.x) * kThreads) {
    V sum = reinterpret_cast<const V*>(pointers.inputs[0])[i];
#pragma unroll 4
    for (int rank = 1; rank < pointers.input_count; ++rank) {
      add_to(sum, reinterpret_cast<const V*>(pointers.inputs[rank])[i]);
    }
    for (int rank = 0; rank < pointers.output_count; ++rank) {
      reinterpret_cast<V*>(pointers.outputs[rank])[i] = sum;
    }
  }
}

void advance(SumPointers& pointers, int64_t bytes) {
  for (int i = 0; i < pointers.input_count; ++i) pointers.inputs[i] += bytes;
  for (int i = 0; i < pointers.output_count; ++i) pointers.outputs[i] += bytes;
}

bool all_aligned(const SumPointers& pointers) {
  uintptr_t bits = 0;
  for (int i = 0; i < pointers.input_count; ++i) bits |= reinterpret_cast<uintptr_t>(pointers.inputs[i]);
  for (int i = 0; i < pointers.output_count; ++i) bits |= reinterpret_cast<uintptr_t>(pointers.outputs[i]);
  return bits % 16 == 0;
}

template <class V>
void launch(cudaStream_t stream, const SumPointers& pointers, int64_t count) {
  if (count == 0) return;
  const int64_t blocks = std::min<int64_t>((count + kThreads - 1) / kThreads, kMaxBlocks);
  sum_kernel<V><<<unsigned(blocks), kThreads, 0, stream>>>(pointers, count);
  check_cuda(cudaGetLastError());
}

/// T: the element; V: as many of them as make 16 bytes.
template <class T, class V>
void launch_elements(cudaStream_t stream, SumPointers pointers, int64_t count) {
  constexpr int64_t kWidth = sizeof(V) / sizeof(T);
  const int64_t vectors = all_aligned(pointers) ? count / kWidth : 0;
  launch<V>(stream, pointers, vectors);
  advance(pointers, vectors * int64_t(sizeof(V)));
  launch<T>(stream, pointers, count - vectors * kWidth);
}

}  // namespace

void launch_sum(cudaStream_t stream, std::span<const Tensor> inputs, std::span<const Tensor> outputs) {
  CHECK(inputs.size() <= kMostSummed && outputs.size() <= kMostSummed, inputs.size(), " inputs, ", outputs.size(),
        " outputs");
  SumPointers pointers{};
  for (const Tensor& tensor : inputs) pointers.inputs[pointers.input_count++] = tensor.data;
  for (const Tensor& tensor : outputs) pointers.outputs[pointers.output_count++] = tensor.data;
  const int64_t count = inputs[0].size();
  if (inputs[0].dtype == Dtype::f64) launch_elements<double, double2>(stream, pointers, count);
  else launch_elements<float, float4>(stream, pointers, count);
}

void load_sum_kernels() {
  cudaFuncAttributes attributes;
  check_cuda(cudaFuncGetAttributes(&attributes, sum_kernel<float>));
  check_cuda(cudaFuncGetAttributes(&attributes, sum_kernel<float4>));
  check_cuda(cudaFuncGetAttributes(&attributes, sum_kernel<double>));
  check_cuda(cudaFuncGetAttributes(&attributes, sum_kernel<double2>));
}

}  // namespace ringlet::cuda
