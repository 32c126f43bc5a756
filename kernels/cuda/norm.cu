#include "kernels/cuda/norm.h"
#include "kernels/cuda/pack_ring.h"
#include "kernels/cuda/row_groups.h"

namespace ringlet::cuda {
namespace {

constexpr int kMostThreads = 512;
constexpr int kStages = 2;  // rows of a thread that are on their way or being computed

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

/// The rows of one thread, fetched ahead: kInputs tensors of [rows, width], kCount packs of each.
template <class T, int kInputs, int kCount>
class RowsAhead {
 public:
  static constexpr int kPack = kFullPack<T>;
  using Ring = PackRing<kStages, kInputs * kCount>;

  __device__ RowsAhead(unsigned char* shared, const T* const (&inputs)[kInputs], int64_t rows, int64_t width)
      : ring_(shared), rows_(rows), width_(width), coming_(int64_t(blockIdx.x) * blockDim.y + threadIdx.y) {
#pragma unroll
    for (int input = 0; input < kInputs; ++input) inputs_[input] = inputs[input];
#pragma unroll
    for (int stage = 0; stage < kStages; ++stage) fetch();
  }
  /// The next row of each thread.
  __device__ void fetch() {
    for_packs<kCount>(coming_ < rows_ ? width_ / kPack : 0, [&](int i, int64_t pack) {
#pragma unroll
      for (int input = 0; input < kInputs; ++input)
        ring_.template fetch<kPack>(input * kCount + i, inputs_[input] + coming_ * width_ + pack * kPack);
    });
    ring_.close();
    coming_ += int64_t(gridDim.x) * blockDim.y;
  }
  __device__ void wait() const { ring_.wait(); }
  __device__ Words read(int input, int i) const { return ring_.template read<Words>(input * kCount + i); }

 private:
  Ring ring_;
  const T* inputs_[kInputs];
  const int64_t rows_, width_;
  int64_t coming_;
};

// As forward, by as many blocks as run at once.
template <class T, int kCount>
__global__ void __launch_bounds__(kMostThreads)
    forward_ahead(const T* x, const T* weight, float epsilon, T* y, int64_t rows, int64_t width) {
  constexpr int kPack = kFullPack<T>;
  extern __shared__ __align__(16) unsigned char shared[];
  const T* const inputs[1] = {x};
  RowsAhead<T, 1, kCount> ahead(shared, inputs, rows, width);
  Words kept[kCount];
  const int64_t row_step = int64_t(gridDim.x) * blockDim.y;
  for (int64_t first_row = int64_t(blockIdx.x) * blockDim.y; first_row < rows; first_row += row_step) {
    const int64_t row = first_row + threadIdx.y;
    const int64_t packs = row < rows ? width / kPack : 0;
    float squares[1] = {0};
    ahead.wait();
    for_packs<kCount>(packs, [&](int i, int64_t) {
      float values[kPack];
      kept[i] = ahead.read(0, i);
      widen_words<T>(kept[i], values);
#pragma unroll
      for (int j = 0; j < kPack; ++j) squares[0] = fmaf(values[j], values[j], squares[0]);
    });
    ahead.fetch();
    combine_over_row<Sum>(squares);
    const float scale = 1.0f / sqrtf(squares[0] / float(width) + epsilon);
    for_packs<kCount>(packs, [&](int i, int64_t pack) {
      float values[kPack], weights[kPack];
      widen_words<T>(kept[i], values);
      load_floats(weight + pack * kPack, weights);
#pragma unroll
      for (int j = 0; j < kPack; ++j) values[j] = values[j] * scale * weights[j];
      store_floats(values, y + row * width + pack * kPack);
    });
  }
}

// d_weight of the block's rows, added up over threadIdx.y, into the block's row of partials. of_rows:
// [blockDim.y, width] in shared memory, unused if a block has one row.
template <int kPack, int kCount>
__device__ void store_partials(const float (&d_weights)[kCount][kPack], int64_t width, float* of_rows,
                               float* partial) {
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
  extern __shared__ __align__(16) unsigned char shared[];
  if constexpr (kCount > 0) store_partials(d_weights, width, reinterpret_cast<float*>(shared), partial);
}

// As backward with Write::add, by as many blocks as run at once. (Where dx is set this is slower.)
template <class T, int kCount>
__global__ void __launch_bounds__(kMostThreads)
    add_backward_ahead(const T* x, const T* weight, float epsilon, const T* dy, T* dx, int64_t rows, int64_t width,
                       float* partials) {
  constexpr int kPack = kFullPack<T>;
  extern __shared__ __align__(16) unsigned char shared[];
  const T* const inputs[3] = {x, dy, dx};
  RowsAhead<T, 3, kCount> ahead(shared, inputs, rows, width);
  float d_weights[kCount][kPack] = {};
  const int64_t row_step = int64_t(gridDim.x) * blockDim.y;
  for (int64_t first_row = int64_t(blockIdx.x) * blockDim.y; first_row < rows; first_row += row_step) {
    const int64_t row = first_row + threadIdx.y;
    const int64_t packs = row < rows ? width / kPack : 0;
    float sums[2] = {0, 0};  // of x^2, of x * w * dy
    ahead.wait();
    for_packs<kCount>(packs, [&](int i, int64_t pack) {
      float values[kPack], d_y[kPack], weights[kPack];
      widen_words<T>(ahead.read(0, i), values);
      widen_words<T>(ahead.read(1, i), d_y);
      load_floats(weight + pack * kPack, weights);
#pragma unroll
      for (int j = 0; j < kPack; ++j) {
        sums[0] = fmaf(values[j], values[j], sums[0]);
        sums[1] = fmaf(values[j] * d_y[j], weights[j], sums[1]);
      }
    });
    combine_over_row<Sum>(sums);
    const float scale = 1.0f / sqrtf(sums[0] / float(width) + epsilon);
    const float pull = sums[1] / float(width) * scale * scale * scale;
    for_packs<kCount>(packs, [&](int i, int64_t pack) {
      float values[kPack], d_y[kPack], weights[kPack], gradient[kPack];
      widen_words<T>(ahead.read(0, i), values);
      widen_words<T>(ahead.read(1, i), d_y);
      load_floats(weight + pack * kPack, weights);
      widen_words<T>(ahead.read(2, i), gradient);
#pragma unroll
      for (int j = 0; j < kPack; ++j) {
        gradient[j] += weights[j] * d_y[j] * scale - values[j] * pull;
        d_weights[i][j] = fmaf(values[j] * d_y[j], scale, d_weights[i][j]);
      }
      store_floats(gradient, dx + row * width + pack * kPack);
    });
    ahead.fetch();
  }
  __syncthreads();  // the ring's memory is free
  store_partials(d_weights, width, reinterpret_cast<float*>(shared), partials + blockIdx.x * width);
}

struct Backward {
  const Tensor &x, &weight;
  float epsilon;
  const Tensor& dy;
  Write write;
  std::span<std::byte> scratch;
  const Tensor &dx, &d_weight;
};

/// Launches `kernel`, which leaves a part of d_weight in scratch for each of up to `most_blocks` blocks, and adds
/// them up.
template <class Kernel, class... Arguments>
void sum_over_blocks(cudaStream_t stream, const Backward& pass, const RowGroups& groups, int64_t most_blocks,
                     int64_t shared_bytes, Kernel* kernel, Arguments... arguments) {
  const int64_t rows = pass.x.rows(), width = pass.x.shape[1];
  const int64_t room = int64_t(pass.scratch.size() / sizeof(float)) / width;
  CHECK(room > 0, "rms_norm_backward: ", pass.scratch.size(), " bytes of scratch for rows of ", width);
  const int64_t blocks = std::min<int64_t>({blocks_of_rows(rows, groups), room, most_blocks});
  auto* const partials = reinterpret_cast<float*>(pass.scratch.data());
  kernel<<<unsigned(blocks), groups.threads, size_t(shared_bytes), stream>>>(arguments..., rows, width, partials);
  check_cuda(cudaGetLastError());
  add_column_sums(stream, partials, blocks, width, width, elements<float>(pass.d_weight));
}

template <class T, int kPack, int kCount>
void launch_backward(cudaStream_t stream, const Backward& pass, const RowGroups& groups) {
  const int threads = int(groups.threads.x * groups.threads.y);
  const auto *const x = elements<const T>(pass.x), *const weight = elements<const T>(pass.weight),
             *const dy = elements<const T>(pass.dy);
  T* const dx = elements<T>(pass.dx);
  if constexpr (kPack == kFullPack<T> && kCount > 0) {
    const auto kernel = add_backward_ahead<T, kCount>;
    const int64_t bytes = int64_t(threads) * RowsAhead<T, 3, kCount>::Ring::kBytesPerThread;
    const int64_t blocks = pass.write == Write::add ? blocks_at_once(kernel, threads, bytes) : 0;
    if (blocks > 0)
      return sum_over_blocks(stream, pass, groups, blocks, bytes, kernel, x, weight, pass.epsilon, dy, dx);
  }
  const auto kernel = backward<T, kPack, kCount>;
  const int64_t bytes = groups.threads.y == 1 ? 0 : groups.threads.y * pass.x.shape[1] * int64_t(sizeof(float));
  // As many blocks as run at once: each keeps its part of d_weight in registers.
  const int64_t blocks = std::max<int64_t>(blocks_at_once(kernel, threads, bytes), 1);
  sum_over_blocks(stream, pass, groups, blocks, bytes, kernel, x, weight, pass.epsilon, dy, pass.write, dx);
}

template <class T, int kPack, int kCount>
void launch_forward(cudaStream_t stream, const RowGroups& groups, const Tensor& x, const Tensor& weight,
                    float epsilon, const Tensor& y) {
  const int64_t rows = x.rows(), width = x.shape[1];
  const auto launch = [&](auto* kernel, int64_t blocks, int64_t shared_bytes) {
    kernel<<<unsigned(blocks), groups.threads, size_t(shared_bytes), stream>>>(
        elements<const T>(x), elements<const T>(weight), epsilon, elements<T>(y), rows, width);
    check_cuda(cudaGetLastError());
  };
  const int64_t all_blocks = blocks_of_rows(rows, groups);
  if constexpr (kPack == kFullPack<T> && kCount > 0) {
    const int threads = int(groups.threads.x * groups.threads.y);
    const int64_t bytes = int64_t(threads) * RowsAhead<T, 1, kCount>::Ring::kBytesPerThread;
    const int64_t blocks = blocks_at_once(forward_ahead<T, kCount>, threads, bytes);
    if (blocks > 0) return launch(forward_ahead<T, kCount>, std::min(blocks, all_blocks), bytes);
  }
  launch(forward<T, kPack, kCount>, all_blocks, 0);
}

}  // namespace

void rms_norm_forward(cudaStream_t stream, const Tensor& x, const Tensor& weight, float epsilon,
                      const Tensor& y) {
  const int64_t width = x.shape[1];
  if (x.size() == 0) return;
  with_activations(x.dtype, [&](auto type) {
    using T = decltype(type);
    with_packs<T>(width, {x.data, weight.data, y.data}, [&](auto pack) {
      const RowGroups groups = row_groups(width / pack(), kMostPacks, kMostThreads);
      with_pack_count(groups.packs_per_thread, [&](auto count) {
        launch_forward<T, pack(), count()>(stream, groups, x, weight, epsilon, y);
      });
    });
  });
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
        launch_backward<T, pack(), count()>(
            stream, {x, weight, epsilon, dy, write, scratch, dx, d_weight}, groups);
      });
    });
  });
}

}  // namespace ringlet::cuda
