#pragma once

#include "kernels/cuda/pack_ring.h"
#include "kernels/cuda/row_groups.h"

/// Rows of logits that are read once from device memory: how a block has them in shared memory or in registers.
namespace ringlet::cuda {

inline constexpr float kLowest = -INFINITY;
inline constexpr int kSharedThreads = 512;  // of a block that has its row in shared memory
/// Of a block that fetches rows ahead while it has one in registers; packs of a thread at most.
inline constexpr int kAheadThreads = 512, kAheadPacks = 16;

/// e^x over a row, up to a factor that is the same for the whole row and keeps the largest near 1.
template <class T>
class Exponential {
 public:
  __device__ explicit Exponential(float maximum) : shift_(kIsFloat ? maximum : maximum * kLog2E) {}
  __device__ float operator()(float x) const {
    if constexpr (kIsFloat) return expf(x - shift_);
    // Rounded once, behind the difference: what is off in shift_ is the same for all x.
    float power;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(fmaf(x, kLog2E, -shift_)));
    return power;
  }
  /// The logarithm of the sum of e^x, from the sum of what operator() gave.
  __device__ double log_sum(float sum) const {
    return double(shift_) / (kIsFloat ? 1.0 : double(kLog2E)) + log(double(sum));
  }

 private:
  static constexpr bool kIsFloat = std::is_same_v<T, float>;
  static constexpr float kLog2E = 1.44269504f;
  const float shift_;
};

/// Rows that a block reads one after the other, gridDim.x apart. A thread has the packs threadIdx.x,
/// threadIdx.x + kAheadThreads, ... of each, kCount at most. On their way they stand in shared memory, where no
/// other thread touches them (no barrier guards them), kStages rows of them; then in registers.
template <class T, int kCount, int kStages>
class LogitRows {
 public:
  static constexpr int kPack = kFullPack<T>;

  __device__ LogitRows(unsigned char* shared, const T* logits, const int32_t* labels, int64_t rows, int vocabulary)
      : shared_(reinterpret_cast<T*>(shared)),
        logits_(logits),
        labels_(labels),
        rows_(rows),
        coming_(blockIdx.x),
        coming_label_(labels[blockIdx.x]),
        packs_(vocabulary / kPack) {
#pragma unroll
    for (int stage = 0; stage < kStages; ++stage) fetch();
  }

  /// Starts to read one more row, unless it has no label.
  __device__ void fetch() {
    if (coming_label_ != -1) {
      const T* const from = logits_ + coming_ * packs_ * kPack;
      for_own_packs([&](int, int pack) {
        fetch_16(arrived() + pack * kPack, from + pack * kPack);
      });
    }
    asm volatile("cp.async.commit_group;" ::: "memory");
    stage_ = stage_ + 1 == kStages ? 0 : stage_ + 1;
    coming_ += gridDim.x;
    coming_label_ = coming_ < rows_ ? labels_[coming_] : -1;
  }
  /// Until the oldest row has arrived.
  __device__ void wait() const { asm volatile("cp.async.wait_group %0;" ::"n"(kStages - 1) : "memory"); }
  /// One element of it, if this thread has it.
  __device__ float at(int column) const { return widen(arrived()[column]); }
  /// The row is in registers then, and another one may be fetched.
  __device__ void take() {
    for_own_packs([&](int i, int pack) { kept_[i] = *reinterpret_cast<const Words*>(arrived() + pack * kPack); });
  }

  /// Over the thread's values. NaN may be lost here: it comes back with the sum.
  __device__ float maximum() const {
    float largest = kLowest;
    for_own_packs([&](int i, int) {
      float values[kPack];
      widen_words<T>(kept_[i], values);
#pragma unroll
      for (int j = 0; j < kPack; ++j) largest = fmaxf(largest, values[j]);
    });
    return largest;
  }
  __device__ float sum(const Exponential<T>& exponential) const {
    float sums[2] = {0, 0};  // two, so that additions need not wait for each other
    for_own_packs([&](int i, int) {
      float values[kPack];
      widen_words<T>(kept_[i], values);
#pragma unroll
      for (int j = 0; j < kPack; ++j) sums[j % 2] += exponential(values[j]);
    });
    return sums[0] + sums[1];
  }
  /// to = factor * exponential(x) - (scale at the label).
  __device__ void write_gradient(const Exponential<T>& exponential, float factor, float scale, int label,
                                 T* to) const {
    for_own_packs([&](int i, int pack) {
      float gradient[kPack];
      widen_words<T>(kept_[i], gradient);
#pragma unroll
      for (int j = 0; j < kPack; ++j) gradient[j] = factor * exponential(gradient[j]);
      if (pack == label / kPack) {
#pragma unroll
        for (int j = 0; j < kPack; ++j) gradient[j] -= j == label % kPack ? scale : 0.0f;
      }
      store_floats(gradient, to + pack * kPack);
    });
  }
  __device__ void write_zeros(T* to) const {
    const float zeros[kPack] = {};
    for_own_packs([&](int, int pack) { store_floats(zeros, to + pack * kPack); });
  }

 private:
  __device__ T* arrived() const { return shared_ + stage_ * packs_ * kPack; }
  template <class Body>
  __device__ void for_own_packs(const Body& body) const {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const int pack = int(threadIdx.x) + i * kAheadThreads;
      if (pack < packs_) body(i, pack);
    }
  }

  T* const shared_;
  const T* const logits_;
  const int32_t* const labels_;
  const int64_t rows_;
  int64_t coming_;
  int coming_label_;
  const int packs_;
  int stage_ = 0;  // the oldest, and the next one to be fetched
  Words kept_[kCount];
};

/// The packs of a row that one thread of a block has: threadIdx.x, threadIdx.x + blockDim.x, ... They stand
/// in shared memory, where no other thread touches them: no barrier guards them.
template <class T>
struct SharedRow {
  static constexpr int kPack = kFullPack<T>;
  T* const kept;
  const int packs;

  /// Starts to read the packs of the row at `from`.
  __device__ void fetch(int pack, const T* from) const {
    fetch_16(kept + pack * kPack, from + pack * kPack);
  }
  __device__ void fetch_all(const T* from) const {
    for (int pack = int(threadIdx.x); pack < packs; pack += int(blockDim.x)) fetch(pack, from);
  }
  __device__ void wait() const { asm volatile("cp.async.wait_all;" ::: "memory"); }

  /// Over the thread's values. NaN may be lost here: it comes back with the sum.
  __device__ float maximum() const {
    float largest = kLowest;
#pragma unroll 4
    for (int pack = int(threadIdx.x); pack < packs; pack += int(blockDim.x)) {
      float values[kPack];
      load_floats(kept + pack * kPack, values);
#pragma unroll
      for (int j = 0; j < kPack; ++j) largest = fmaxf(largest, values[j]);
    }
    return largest;
  }
  __device__ float sum(const Exponential<T>& exponential) const {
    float sum = 0;
#pragma unroll 4
    for (int pack = int(threadIdx.x); pack < packs; pack += int(blockDim.x)) {
      float values[kPack];
      load_floats(kept + pack * kPack, values);
#pragma unroll
      for (int j = 0; j < kPack; ++j) sum += exponential(values[j]);
    }
    return sum;
  }
};

}  // namespace ringlet::cuda
