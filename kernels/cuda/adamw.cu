#include "kernels/adamw_factors.h"
#include "kernels/cuda/adamw.h"
#include "kernels/cuda/packs.h"

namespace ringlet::cuda {
namespace {

constexpr int kSumBlocks = int(kSumOfSquaresScratchBytes / int64_t(sizeof(double)));

/// The block's sum, in thread 0. Called once by a kernel, with kThreads threads.
__device__ double sum_over_block(double value) {
  __shared__ double of_warps[kThreads / 32];
  for (int distance = 16; distance > 0; distance /= 2) value += __shfl_xor_sync(0xffffffffu, value, distance);
  if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = value;
  __syncthreads();
  if (threadIdx.x != 0) return 0;
  for (int warp = 1; warp < kThreads / 32; ++warp) value += of_warps[warp];
  return value;
}

__global__ void __launch_bounds__(kThreads)
    sum_squares(const float* x, int64_t whole_packs, int64_t size, double* sums) {
  constexpr int kPack = kFullPack<float>;
  double even = 0, odd = 0;
  for (int64_t pack = grid_thread(); pack < whole_packs; pack += grid_threads()) {
    float values[kPack];
    load_floats(x + pack * kPack, values);
    even = fma(double(values[0]), double(values[0]), even);
    odd = fma(double(values[1]), double(values[1]), odd);
    even = fma(double(values[2]), double(values[2]), even);
    odd = fma(double(values[3]), double(values[3]), odd);
  }
  for (int64_t i = whole_packs * kPack + grid_thread(); i < size; i += grid_threads()) {
    even = fma(double(x[i]), double(x[i]), even);
  }
  const double sum = sum_over_block(even + odd);
  if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

__global__ void __launch_bounds__(kThreads) add_sums(const double* sums, int count, double* result) {
  double sum = 0;
  for (int i = int(threadIdx.x); i < count; i += kThreads) sum += sums[i];
  sum = sum_over_block(sum);
  if (threadIdx.x == 0) *result = sum;
}

struct Tensors {
  const float* gradient;
  float *weights, *first_moment, *second_moment;
  __nv_bfloat16* rounded;  // or null
};

template <int kPack>
__device__ void step_pack(const AdamWFactors& factors, const Tensors& at, int64_t first) {
  float g[kPack], w[kPack], m[kPack], v[kPack];
  load_floats(at.gradient + first, g);
  load_floats(at.weights + first, w);
  load_floats(at.first_moment + first, m);
  load_floats(at.second_moment + first, v);
#pragma unroll
  for (int i = 0; i < kPack; ++i) {
    g[i] *= factors.gradient_scale;
    m[i] = fmaf(m[i], factors.beta1, g[i] * factors.rest1);
    v[i] = fmaf(v[i], factors.beta2, g[i] * g[i] * factors.rest2);
    const float root = fmaf(sqrtf(v[i]), factors.moment_scale, factors.epsilon);
    w[i] -= fmaf(w[i], factors.decay, m[i] * factors.step_size / root);
  }
  store_floats(w, at.weights + first);
  store_floats(m, at.first_moment + first);
  store_floats(v, at.second_moment + first);
  if (at.rounded != nullptr) store_floats(w, at.rounded + first);
}

__global__ void __launch_bounds__(kThreads)
    step_all(AdamWFactors factors, Tensors at, int64_t whole_packs, int64_t size) {
  constexpr int kPack = kFullPack<float>;
  for (int64_t pack = grid_thread(); pack < whole_packs; pack += grid_threads()) {
    step_pack<kPack>(factors, at, pack * kPack);
  }
  for (int64_t i = whole_packs * kPack + grid_thread(); i < size; i += grid_threads())
    step_pack<1>(factors, at, i);
}

}  // namespace

void sum_of_squares(cudaStream_t stream, const Tensor& x, std::span<std::byte> scratch,
                    const Tensor& result) {
  CHECK(int64_t(scratch.size()) >= kSumOfSquaresScratchBytes, scratch.size(), " bytes of scratch");
  auto* const sums = reinterpret_cast<double*>(scratch.data());
  const int64_t packs = all_aligned({x.data}) ? x.size() / kFullPack<float> : 0;
  const int blocks = std::min(kSumBlocks, int(blocks_for(packs > 0 ? packs : x.size())));
  sum_squares<<<blocks, kThreads, 0, stream>>>(elements<const float>(x), packs, x.size(), sums);
  check_cuda(cudaGetLastError());
  add_sums<<<1, kThreads, 0, stream>>>(sums, blocks, elements<double>(result));
  check_cuda(cudaGetLastError());
}

void adamw(cudaStream_t stream, const AdamW& settings, const Tensor& gradient, const Tensor& weights,
           const Tensor& first_moment, const Tensor& second_moment, const Tensor& rounded) {
  if (weights.size() == 0) return;
  const AdamWFactors factors = factors_of(settings);
  const Tensors tensors{elements<const float>(gradient), elements<float>(weights),
                        elements<float>(first_moment), elements<float>(second_moment),
                        elements<__nv_bfloat16>(rounded)};
  // Four rounded weights are 8 bytes; asking 16 of them too is simpler, and the arena gives 256.
  const bool aligned =
      all_aligned({gradient.data, weights.data, first_moment.data, second_moment.data, rounded.data});
  const int64_t packs = aligned ? weights.size() / kFullPack<float> : 0;
  step_all<<<blocks_for(packs > 0 ? packs : weights.size()), kThreads, 0, stream>>>(factors, tensors, packs,
                                                                                    weights.size());
  check_cuda(cudaGetLastError());
}

}  // namespace ringlet::cuda
