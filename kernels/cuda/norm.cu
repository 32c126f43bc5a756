#include "kernels/cuda/norm.h"
#include "kernels/cuda/row_groups.h"

namespace ringlet::cuda {
namespace {

constexpr int kMostThreads = 512;

// kPack elements are read at once; a thread keeps kCount packs of a row in registers, 0: rows are read again.
template <class T, int kPack, int kCount>
__global__ void __launch_bounds__(kMostThreads)
    forward(const T* x, const T* weight, float epsilon, T* y, int64_t rows, int64_t width) {
  const int64_t row_step = int64_t(gridDim.x) * blockDim.y;
  for (int64_t first_row = int64_t(blockIdx.x) * blockDim.y; first_row < rows; first_row += row_step) {
    const int64_t row = first_row + threadIdx.y;
    const int64_t packs = row < rows ? width / kPack : 0;
    const T* const from = x + row * width;
    Pack<T, kPack> kept[kKept<kCount>];
    float squares[1] = {0};
    for_packs<kCount>(packs, [&](int i, int64_t pack) {
      kept[i] = load_pack<kPack>(from + pack * kPack);
#pragma unroll
      for (int j = 0; j < kPack; ++j)
        squares[0] = fmaf(widen(kept[i].values[j]), widen(kept[i].values[j]), squares[0]);
    });
    combine_over_row<Sum>(squares);
    const float scale = 1.0f / sqrtf(squares[0] / float(width) + epsilon);
    for_packs<kCount>(packs, [&](int i, int64_t pack) {
      if constexpr (kCount == 0) kept[i] = load_pack<kPack>(from + pack * kPack);
      float weights[kPack], values[kPack];
      load_floats(weight + pack * kPack, weights);
#pragma unroll
      for (int j = 0; j < kPack; ++j) values[j] = widen(kept[i].values[j]) * scale * weights[j];
      store_floats(values, y + row * width + pack * kPack);
    });
  }
}

// d_weight of the block's rows, added up over threadIdx.y, into the block's row of partials.
template <int kPack, int kCount>
__device__ void store_partials(const float (&d_weights)[kCount][kPack], int64_t width, float* partial) {
  extern __shared__ __align__(16) float of_rows[];  // [blockDim.y, width]
  for_packs<kCount>(width / kPack, [&](int i, int64_t pack) {
    store_floats(d_weights[i], (blockDim.y == 1 ? partial : of_rows + threadIdx.y * width) + pack * kPack);
  });
  if (blockDim.y == 1) return;
  __syncthreads();
  const int thread = int(threadIdx.y * blockDim.x + threadIdx.x), threads = int(blockDim.x * blockDim.y);
  for (int64_t column = thread; column < width; column += threads) {
    float sum = of_rows[column];
    for (unsigned i = 1; i < blockDim.y; ++i) sum += of_rows[i * width + column];
    partial[column] = sum;
  }
}

// With s = 1 / sqrt(mean(x^2) + epsilon): dx = s * w * dy - x * s^3 * mean(x * w * dy);
// d_weight += dy * x * s. partials: [blocks, width], set to the blocks' parts of d_weight.
template <class T, int kPack, int kCount>
__global__ void __launch_bounds__(kMostThreads)
    backward(const T* x, const T* weight, float epsilon, const T* dy, Write write, T* dx, int64_t rows,
             int64_t width, float* partials) {
  float* const partial = partials + blockIdx.x * width;
  float d_weights[kKept<kCount>][kPack] = {};
  if constexpr (kCount == 0) {
    for_packs<0>(width / kPack,
                 [&](int, int64_t pack) { store_floats(d_weights[0], partial + pack * kPack); });
  }
  const int64_t row_step = int64_t(gridDim.x) * blockDim.y;
  for (int64_t first_row = int64_t(blockIdx.x) * blockDim.y; first_row < rows; first_row += row_step) {
    const int64_t row = first_row + threadIdx.y;
    const int64_t packs = row < rows ? width / kPack : 0;
    const T *const x_row = x + row * width, *const dy_row = dy + row * width;
    Pack<T, kPack> kept_x[kKept<kCount>], kept_dy[kKept<kCount>];
    float sums[2] = {0, 0};  // of x^2, of x * w * dy
    for_packs<kCount>(packs, [&](int i, int64_t pack) {
      kept_x[i] = load_pack<kPack>(x_row + pack * kPack);
      kept_dy[i] = load_pack<kPack>(dy_row + pack * kPack);
    });
    for_packs<kCount>(packs, [&](int i, int64_t pack) {
      if constexpr (kCount == 0) {
        kept_x[i] = load_pack<kPack>(x_row + pack * kPack);
        kept_dy[i] = load_pack<kPack>(dy_row + pack * kPack);
      }
      float weights[kPack];
      load_floats(weight + pack * kPack, weights);
#pragma unroll
      for (int j = 0; j < kPack; ++j) {
        const float value = widen(kept_x[i].values[j]);
        sums[0] = fmaf(value, value, sums[0]);
        sums[1] = fmaf(value * widen(kept_dy[i].values[j]), weights[j], sums[1]);
      }
    });
    combine_over_row<Sum>(sums);
    const float scale = 1.0f / sqrtf(sums[0] / float(width) + epsilon);
    const float pull = sums[1] / float(width) * scale * scale * scale;
    for_packs<kCount>(packs, [&](int i, int64_t pack) {
      if constexpr (kCount == 0) {
        kept_x[i] = load_pack<kPack>(x_row + pack * kPack);
        kept_dy[i] = load_pack<kPack>(dy_row + pack * kPack);
        load_floats(partial + pack * kPack, d_weights[i]);
      }
      float weights[kPack], gradient[kPack] = {};
      load_floats(weight + pack * kPack, weights);
      if (write == Write::add) load_floats(dx + row * width + pack * kPack, gradient);
#pragma unroll
      for (int j = 0; j < kPack; ++j) {
        const float value = widen(kept_x[i].values[j]), d_y = widen(kept_dy[i].values[j]);
        gradient[j] += weights[j] * d_y * scale - value * pull;
        d_weights[i][j] = fmaf(value * d_y, scale, d_weights[i][j]);
      }
      store_floats(gradient, dx + row * width + pack * kPack);
      if constexpr (kCount == 0) store_floats(d_weights[i], partial + pack * kPack);
    });
  }
  if constexpr (kCount > 0) store_partials(d_weights, width, partial);
}

template <class T, int kPack, int kCount>
void launch_backward(cudaStream_t stream, const Tensor& x, const Tensor& weight, float epsilon,
                     const Tensor& dy, Write write, const RowGroups& groups, std::span<std::byte> scratch,
                     const Tensor& dx, const Tensor& d_weight) {
  const int64_t rows = x.rows(), width = x.shape[1];
  const unsigned threads = groups.threads.x * groups.threads.y;
  const size_t shared_bytes = groups.threads.y == 1 ? 0 : groups.threads.y * size_t(width) * sizeof(float);
  const auto kernel = backward<T, kPack, kCount>;
  // As many blocks as run at once: each keeps its part of d_weight in registers.
  int resident = 0;
  check_cuda(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, kernel, int(threads), shared_bytes));
  const int64_t room = int64_t(scratch.size() / sizeof(float)) / width;
  CHECK(room > 0, "rms_norm_backward: ", scratch.size(), " bytes of scratch for rows of ", width);
  const int64_t blocks = std::min<int64_t>(
      {blocks_of_rows(rows, groups), room, int64_t(std::max(resident, 1)) * multiprocessors()});
  auto* const partials = reinterpret_cast<float*>(scratch.data());
  kernel<<<unsigned(blocks), groups.threads, shared_bytes, stream>>>(
      elements<const T>(x), elements<const T>(weight), epsilon, elements<const T>(dy), write, elements<T>(dx),
      rows, width, partials);
  check_cuda(cudaGetLastError());
  add_column_sums(stream, partials, blocks, width, width, elements<float>(d_weight));
}

}  // namespace

void rms_norm_forward(cudaStream_t stream, const Tensor& x, const Tensor& weight, float epsilon,
                      const Tensor& y) {
  const int64_t rows = x.rows(), width = x.shape[1];
  if (x.size() == 0) return;
  with_activations(x.dtype, [&](auto type) {
    using T = decltype(type);
    with_packs<T>(width, {x.data, weight.data, y.data}, [&](auto pack) {
      const RowGroups groups = row_groups(width / pack(), kMostPacks, kMostThreads);
      with_pack_count(groups.packs_per_thread, [&](auto count) {
        forward<T, pack(), count()><<<blocks_of_rows(rows, groups), groups.threads, 0, stream>>>(
            elements<const T>(x), elements<const T>(weight), epsilon, elements<T>(y), rows, width);
      });
    });
  });
  check_cuda(cudaGetLastError());
}

void rms_norm_backward(cudaStream_t stream, const Tensor& x, const Tensor& weight, float epsilon,
                       const Tensor& dy, Write write, std::span<std::byte> scratch, const Tensor& dx,
                       const Tensor& d_weight) {
  const int64_t width = x.shape[1];
  if (x.size() == 0) return;
  with_activations(x.dtype, [&](auto type) {
    using T = decltype(type);
    with_packs<T>(width, {x.data, weight.data, dy.data, dx.data}, [&](auto pack) {
      const RowGroups groups = row_groups(width / pack(), kMostPacks, kMostThreads);
      with_pack_count(groups.packs_per_thread, [&](auto count) {
        launch_backward<T, pack(), count()>(stream, x, weight, epsilon, dy, write, groups, scratch, dx,
                                            d_weight);
      });
    });
  });
}

}  // namespace ringlet::cuda
