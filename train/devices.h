#pragma once

#include <memory>
#include <optional>
#include <string>

#include "kernels/backend.h"
#include "kernels/comm/rank_memory.h"
#include "kernels/cuda_module.h"
#include "kernels/offload.h"
#include "train/config.h"

namespace ringlet {

/// The threads that compute for a rank on the processor; pinned: each stays on a core of its own.
struct HostThreads {
  int per_rank = 1;
  bool pinned = false;
};

/// What the ranks of this process compute on: the processor, or the GPUs of this machine, which they share out in turn.
class Devices {
 public:
  /// cpu: the program's first says on stderr, in one line, when the kernels run on a slow path.
  /// cuda: opens the module and asks the driver. Throws Error when there is no GPU that this program can use.
  /// local_rank: this process has one GPU for itself, the others of the machine belong to other processes (NCCL).
  explicit Devices(DeviceKind kind, HostThreads threads = {}, CudaAttention attention = CudaAttention::automatic,
                   std::optional<int> local_rank = {});

  /// The device of a rank; `arena_bytes` at most, on a GPU no more than its share of what is free. Called by the rank's
  /// thread. Throws Error when it cannot be had.
  std::unique_ptr<Backend> make(int rank, int ranks, int64_t arena_bytes, Trace& trace) const;
  /// Room for `bytes` of a rank's tensors beside its device, in memory.offload: a file, for a GPU pinned host
  /// memory. Called by the rank's thread; must die before the device. Throws Error when it cannot be had.
  std::unique_ptr<Offload> make_offload(const Config& config, int rank, int64_t bytes, Trace& trace) const;
  /// What moves tensors between the ranks; absent: all stand in the host's memory.
  RankMemory* memory() const { return memory_.get(); }
  /// Bytes of tensors that a rank may have.
  int64_t share_bytes(int rank, int ranks) const;
  /// What rates are measured for: "AMD EPYC, AVX2, 2 threads", "NVIDIA H200, bf16".
  std::string rates_name(Dtype dtype) const;
  /// Who computes: so many ranks' threads at a time, on so many cores or GPUs; 0: one for each rank.
  int threads_per_rank() const { return kind_ == DeviceKind::cpu ? threads_.per_rank : 1; }
  int worker_count() const;
  DeviceKind kind() const { return kind_; }
  /// Of the first GPU's memory: what is taken now, by whomever, and what its share of `ranks` ranks takes with arenas
  /// of so many bytes and what each has beside its arena. 0 on the processor.
  int64_t used_bytes() const;
  int64_t bytes_of_ranks(int64_t arena_bytes, int64_t ranks) const;
  /// With GPUs: the module, and a rank's GPU as CUDA counts.
  const CudaInterface& module() const { return *module_; }
  int gpu_index(int rank) const { return gpu_of(rank).index; }
  /// One line: "AVX2, 2 threads a rank", "NVIDIA H200".
  std::string name() const;

 private:
  const CudaDevice& gpu_of(int rank) const;
  int64_t ranks_on_gpu(int rank, int ranks) const;  // that share the GPU of `rank`
  const DeviceKind kind_;
  const HostThreads threads_;
  const CudaAttention attention_;
  const bool own_gpu_;
  const CudaInterface* module_ = nullptr;  // with GPUs
  CudaMachine machine_;
  std::unique_ptr<RankMemory> memory_;
};

}  // namespace ringlet
