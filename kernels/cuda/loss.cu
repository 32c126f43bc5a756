#include "kernels/cuda/loss.h"
#include "kernels/cuda/row_groups.h"

namespace ringlet::cuda {
namespace {

constexpr int kMostThreads = 1024;
constexpr float kLowest = -INFINITY;

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
      sum[0] = running.maximum == kLowest ? 0 : running.sum * expf(running.maximum - maximum[0]);
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

}  // namespace

void cross_entropy(cudaStream_t stream, const Tensor& logits, const Tensor& labels, CrossEntropy mode,
                   float gradient_scale, const Tensor& losses) {
  const int64_t rows = logits.rows(), vocabulary = logits.shape[1];
  if (rows == 0) return;
  with_activations(logits.dtype, [&](auto type) {
    using T = decltype(type);
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
