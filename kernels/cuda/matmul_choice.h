#pragma once

#include <cublasLt.h>
#include <cuda_runtime.h>

#include <array>
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <span>

#include "kernels/backend.h"
#include "kernels/cuda_module.h"

namespace ringlet::cuda {

/// Several algorithms of one product, the one to fall back on first, and how to try them.
struct MatmulTrial {
  cudaStream_t stream;
  std::span<const cublasLtMatmulAlgo_t> algorithms;
  /// Puts `to` = product + beta * `to` on the stream; false: the algorithm refuses, nothing has been
  /// launched.
  std::function<bool(const cublasLtMatmulAlgo_t& algorithm, float beta, void* to)> run;
  Write write;
  Tensor out;                    // may be overwritten where `write` is set
  std::span<std::byte> scratch;  // of the stream
  CudaTuning tuning;
};

/// The fastest of the algorithms, by time on the device; with CudaTuning::equal_bits of those alone whose
/// product has the bits of the first one's. Nothing where that cannot be found out: no memory for a trial,
/// or a product in which one element is like the other, as of zeros, so that it says nothing about the bits
/// of others. Waits for the stream. Cost: some 30 ms of the device where products take a millisecond, less
/// below.
std::optional<cublasLtMatmulAlgo_t> fastest_algorithm(const MatmulTrial& trial);

/// What a choice depends on beside the device.
using MatmulKey = std::array<int64_t, 13>;

/// The choices of all ranks of this process on one device with one kind of tuning. Ranks never wait for
/// each other here: who finds another one at a trial goes on without. Any thread may call everything.
class MatmulChoices {
 public:
  /// Of the current device.
  static MatmulChoices& of_device(CudaTuning tuning);
  std::optional<cublasLtMatmulAlgo_t> find(const MatmulKey& key);
  /// May the caller hold a trial? He must call end_trial then. Trials that found nothing come again more
  /// and more rarely.
  bool begin_trial(const MatmulKey& key);
  void end_trial(const MatmulKey& key, const std::optional<cublasLtMatmulAlgo_t>& choice);

 private:
  struct Entry {
    std::optional<cublasLtMatmulAlgo_t> choice;
    bool is_tried = false;  // by some rank, now
    uint32_t asked = 0;
  };
  std::mutex mutex_;
  std::map<MatmulKey, Entry> entries_;
};

}  // namespace ringlet::cuda
