#include "kernels/cuda/loss.h"
#include "kernels/cuda/loss_rows.cuh"
#include "kernels/cuda/pack_ring.h"
#include "kernels/cuda/row_groups.h"

namespace ringlet::cuda {
namespace {

constexpr int kMostThreads = 1024;

/// The sum of e^(x - maximum) over one thread's values, and their maximum, as the values come.
struct RunningSum {
  float maximum = kLowest, sum = 0;

  __device__ void add(float value) {
    // Until something is above -infinity there is no difference to take.
    if (value > maximum) {
      sum = sum * expf(maximum - value) + 1.0f;
      maximum = value;
    } else if (value != kLowest) {
      sum += expf(value - maximum);  // NaN stays NaN
    }
  }
};

template <class T, int kPack, int kCount>
struct Row {
  T* const at;
  const int64_t packs;
  Pack<T, kPack> kept[kKept<kCount>];

  /// maximum[0] over the row and sum[0] of e^(x - maximum); all threads of the block call it.
  __device__ void reduce(float (&maximum)[1], float (&sum)[1]) {
    RunningSum running;
    for_packs<kCount>(packs, [&](int i, int64_t pack) {
      kept[i] = load_pack<kPack>(at + pack * kPack);
#pragma unroll
      for (int j = 0; j < kPack; ++j) {
        const float value = widen(kept[i].values[j]);
        if constexpr (kCount == 0)
          running.add(value);
        else
          running.maximum = Maximum()(running.maximum, value);
      }
    });
    maximum[0] = running.maximum;
    combine_over_row<Maximum>(maximum);
    if constexpr (kCount == 0) {
      sum[0] = running.maximum == kLowest ? running.sum  // 0, or NaN
                                          : running.sum * expf(running.maximum - maximum[0]);
    } else {
      sum[0] = 0;
      for_packs<kCount>(packs, [&](int i, int64_t) {
#pragma unroll
        for (int j = 0; j < kPack; ++j) sum[0] += expf(widen(kept[i].values[j]) - maximum[0]);
      });
    }
    combine_over_row<Sum>(sum);
  }

  /// x = scale / sum * e^(x - maximum) - (scale at the label).
  __device__ void write_gradient(float maximum, float sum, float scale, int64_t label) {
    const float factor = scale / sum;
    for_packs<kCount>(packs, [&](int i, int64_t pack) {
      if constexpr (kCount == 0) kept[i] = load_pack<kPack>(at + pack * kPack);
      float gradient[kPack];
#pragma unroll
      for (int j = 0; j < kPack; ++j) {
        gradient[j] = factor * expf(widen(kept[i].values[j]) - maximum);
        if (pack * kPack + j == label) gradient[j] -= scale;
      }
      store_floats(gradient, at + pack * kPack);
    });
  }

  __device__ void write_zeros() {
    const float zeros[kPack] = {};
    for_packs<kCount>(packs, [&](int, int64_t pack) { store_floats(zeros, at + pack * kPack); });
  }
};

// A row is read once if a thread keeps its kCount packs in registers, else again for the gradient.
template <class T, int kPack, int kCount>
__global__ void __launch_bounds__(kMostThreads)
    cross_entropy_rows(T* logits, const int32_t* labels, CrossEntropy mode, float gradient_scale,
                       float* losses, int64_t rows, int64_t vocabulary) {
  const int64_t row_step = int64_t(gridDim.x) * blockDim.y;
  for (int64_t first_row = int64_t(blockIdx.x) * blockDim.y; first_row < rows; first_row += row_step) {
    const int64_t row = first_row + threadIdx.y;
    const int64_t label = row < rows ? labels[row] : -1;
    // Rows without a label, and those behind the last one, take part in the barriers alone.
    Row<T, kPack, kCount> x{logits + row * vocabulary, label == -1 ? 0 : vocabulary / kPack, {}};
    // Before the barriers of reduce, behind which it is overwritten.
    const float at_label = label >= 0 && label < vocabulary ? widen(x.at[label]) : NAN;
    float maximum[1], sum[1];
    x.reduce(maximum, sum);
    if (row >= rows) continue;
    if (threadIdx.x == 0) {
      const double loss = double(maximum[0]) - double(at_label) + log(double(sum[0]));
      losses[row] = label == -1 ? 0.0f : float(loss);
    }
    __syncwarp();  // the logit at the label has been read
    if (mode == CrossEntropy::loss_only) continue;
    if (label == -1) {
      Row<T, kPack, kCount>{x.at, vocabulary / kPack, {}}.write_zeros();
    } else {
      x.write_gradient(maximum[0], sum[0], gradient_scale, label);
    }
  }
}

// A block has a row in registers, and the next ones are on their way while its gradient is written. (Without a gradient
// two blocks with a row each in shared memory are faster.)
template <class T, int kCount, int kStages>
__global__ void __launch_bounds__(kAheadThreads)
    gradients_ahead(T* logits, const int32_t* labels, float gradient_scale, float* losses, int64_t rows,
                    int vocabulary) {
  extern __shared__ __align__(16) unsigned char shared[];
  LogitRows<T, kCount, kStages> x(shared, logits, labels, rows, vocabulary);
  int label = labels[blockIdx.x];
  for (int64_t row = blockIdx.x, next = row + gridDim.x; row < rows; row = next, next += gridDim.x) {
    const int next_label = next < rows ? labels[next] : -1;
    const bool is_scored = label != -1, is_valid = label >= 0 && label < vocabulary;
    const bool reports = int(threadIdx.x) == (is_valid ? label / kFullPack<T> % kAheadThreads : 0);
    float maximum[1] = {kLowest}, sum[1] = {0}, at_label = NAN;
    x.wait();
    if (is_scored) {
      if (reports && is_valid) at_label = x.at(label);
      x.take();
    }
    x.fetch();
    if (is_scored) {
      maximum[0] = x.maximum();
      combine_over_row<Maximum>(maximum);
    }
    const Exponential<T> exponential(maximum[0]);
    if (is_scored) {
      sum[0] = x.sum(exponential);
      combine_over_row<Sum>(sum);
    }
    if (reports) losses[row] = is_scored ? float(exponential.log_sum(sum[0]) - double(at_label)) : 0.0f;
    T* const to = logits + row * vocabulary;
    if (is_scored)
      x.write_gradient(exponential, gradient_scale / sum[0], gradient_scale, label, to);
    else
      x.write_zeros(to);
    label = next_label;
  }
}

/// False where a row does not fit or is too small to gain from it: nothing is launched then.
template <class T>
bool launch_ahead(cudaStream_t stream, const Tensor& logits, const Tensor& labels, float gradient_scale,
                  const Tensor& losses) {
  constexpr int64_t kLeastBytes = 16 << 10, kPackBytes = 16;
  const int64_t vocabulary = logits.shape[1], row_bytes = vocabulary * int64_t(sizeof(T));
  const int64_t packs_per_thread = (row_bytes / kPackBytes + kAheadThreads - 1) / kAheadThreads;
  if (row_bytes % kPackBytes != 0 || !all_aligned({logits.data}) || row_bytes < kLeastBytes) return false;
  const auto launch = [&](auto* kernel, int stages) {
    const int64_t bytes = row_bytes * stages;
    const int64_t blocks = std::min(logits.rows(), blocks_at_once(kernel, kAheadThreads, bytes));
    if (blocks == 0) return false;
    kernel<<<unsigned(blocks), kAheadThreads, size_t(bytes), stream>>>(
        elements<T>(logits), elements<const int32_t>(labels), gradient_scale, elements<float>(losses),
        logits.rows(), int(vocabulary));
    return true;
  };
  const auto launch_with = [&](auto count) {
    return launch(gradients_ahead<T, count(), 2>, 2) || launch(gradients_ahead<T, count(), 1>, 1);
  };
  if (packs_per_thread <= kAheadPacks / 2) return launch_with(std::integral_constant<int, kAheadPacks / 2>());
  return packs_per_thread <= kAheadPacks && launch_with(std::integral_constant<int, kAheadPacks>());
}

// A block has a row in shared memory, so that device memory is read once, and the next row is on its way while the last
// sums are combined.
template <class T>
__global__ void __launch_bounds__(kSharedThreads, 2)
    losses_in_shared(const T* logits, const int32_t* labels, float* losses, int64_t rows, int vocabulary) {
  constexpr int kPack = kFullPack<T>;
  extern __shared__ __align__(16) unsigned char shared[];
  const SharedRow<T> x{reinterpret_cast<T*>(shared), vocabulary / kPack};
  int label = labels[blockIdx.x];
  if (label != -1) x.fetch_all(logits + blockIdx.x * int64_t(vocabulary));
  for (int64_t row = blockIdx.x, next = row + gridDim.x; row < rows; row = next, next += gridDim.x) {
    const int next_label = next < rows ? labels[next] : -1;
    const bool is_scored = label != -1, is_valid = label >= 0 && label < vocabulary;
    const bool reports = int(threadIdx.x) == (is_valid ? label / kPack % int(blockDim.x) : 0);
    float maximum[1] = {kLowest}, sum[1] = {0}, at_label = NAN;
    x.wait();
    if (is_scored) {
      if (reports && is_valid) at_label = widen(x.kept[label]);
      maximum[0] = x.maximum();
      combine_over_row<Maximum>(maximum);
    }
    const Exponential<T> exponential(maximum[0]);
    if (is_scored) sum[0] = x.sum(exponential);
    if (next_label != -1) x.fetch_all(logits + next * vocabulary);
    if (is_scored) combine_over_row<Sum>(sum);
    if (reports) losses[row] = is_scored ? float(exponential.log_sum(sum[0]) - double(at_label)) : 0.0f;
    label = next_label;
  }
}

/// False where a row does not fit or is too small to gain from it: nothing is launched then.
template <class T>
bool launch_in_shared(cudaStream_t stream, const Tensor& logits, const Tensor& labels, const Tensor& losses) {
  constexpr int64_t kLeastBytes = 16 << 10;
  const int64_t vocabulary = logits.shape[1], bytes = vocabulary * int64_t(sizeof(T));
  if (vocabulary % kFullPack<T> != 0 || !all_aligned({logits.data}) || bytes < kLeastBytes) return false;
  const auto kernel = losses_in_shared<T>;
  const int64_t blocks = std::min(logits.rows(), blocks_at_once(kernel, kSharedThreads, bytes));
  if (blocks == 0) return false;
  kernel<<<unsigned(blocks), kSharedThreads, size_t(bytes), stream>>>(
      elements<const T>(logits), elements<const int32_t>(labels), elements<float>(losses), logits.rows(),
      int(vocabulary));
  return true;
}

}  // namespace

void cross_entropy(cudaStream_t stream, const Tensor& logits, const Tensor& labels, CrossEntropy mode,
                   float gradient_scale, const Tensor& losses) {
  const int64_t rows = logits.rows(), vocabulary = logits.shape[1];
  if (rows == 0) return;
  with_activations(logits.dtype, [&](auto type) {
    using T = decltype(type);
    const bool is_launched = mode == CrossEntropy::loss_only
                                 ? launch_in_shared<T>(stream, logits, labels, losses)
                                 : launch_ahead<T>(stream, logits, labels, gradient_scale, losses);
    if (is_launched) return;
    with_packs<T>(vocabulary, {logits.data}, [&](auto pack) {
      const RowGroups groups = row_groups(vocabulary / pack(), kMostPacks, kMostThreads);
      with_pack_count(groups.packs_per_thread, [&](auto count) {
        cross_entropy_rows<T, pack(), count()><<<blocks_of_rows(rows, groups), groups.threads, 0, stream>>>(
            elements<T>(logits), elements<const int32_t>(labels), mode, gradient_scale,
            elements<float>(losses), rows, vocabulary);
      });
    });
  });
  check_cuda(cudaGetLastError());
}

}  // namespace ringlet::cuda
