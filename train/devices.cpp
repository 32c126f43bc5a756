#include "train/devices.h"

#include <fmt/core.h>

#include <algorithm>

#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/file_offload.h"
#include "train/console.h"
#include "train/machine.h"

namespace ringlet {
namespace {

/// Of a GPU, beside the arenas: contexts, kernels, and for each rank its scratch.
constexpr int64_t kReservedBytes = int64_t{1} << 30;
constexpr int64_t kRankBytes = int64_t{192} << 20;
/// The same where NCCL runs: its buffers for the peers of two communicators, and what it stages.
constexpr int64_t kNcclBytes = int64_t{1} << 30;

CudaMachine working_gpus(const CudaInterface& module, std::optional<int> local_rank) {
  CudaMachine machine = local_rank ? module.examine_own(*local_rank) : module.examine();
  if (!machine.trouble.empty()) {
    throw Error("no GPU: " + machine.trouble,
                local_rank ? "each process needs one; run.comm = \"threads\" shares what `ringlet doctor` finds"
                           : "run.device = \"cpu\" needs none; `ringlet doctor` tells what there is");
  }
  std::string trouble;
  for (const CudaDevice& device : machine.devices) trouble = trouble.empty() ? device.trouble : trouble;
  std::erase_if(machine.devices, [](const CudaDevice& device) { return !device.trouble.empty(); });
  if (machine.devices.empty()) {
    throw Error("no GPU that this build can use: " + trouble, "`ringlet doctor` tells what there is");
  }
  return machine;
}

/// On stderr, once: several parts of a command may ask for the processor.
void warn_of_slow_kernels() {
  static const bool done = [] {
    const std::string warning = cpu_isa_warning();
    if (!warning.empty()) print_error("warning: " + warning + "\n");
    return true;
  }();
  static_cast<void>(done);
}

}  // namespace

Devices::Devices(DeviceKind kind, HostThreads threads, CudaAttention attention, std::optional<int> local_rank)
    : kind_(kind),
      threads_(threads),
      attention_(attention),
      own_gpu_(kind == DeviceKind::cuda && local_rank.has_value()) {
  if (kind == DeviceKind::cpu) {
    warn_of_slow_kernels();
    return;
  }
  const CudaModule module = open_cuda_module();
  if (module.interface == nullptr) {
    throw Error("no CUDA: " + module.trouble,
                local_rank ? "run.comm = \"threads\" with run.device = \"cpu\" needs none"
                           : "run.device = \"cpu\" needs none");
  }
  module_ = module.interface;
  machine_ = working_gpus(*module_, local_rank);
  memory_ = module_->make_rank_memory();
}

const CudaDevice& Devices::gpu_of(int rank) const {
  return machine_.devices[size_t(rank) % machine_.devices.size()];
}

int64_t Devices::ranks_on_gpu(int rank, int ranks) const {
  const int64_t gpus = std::ssize(machine_.devices);
  return (ranks - rank % gpus + gpus - 1) / gpus;
}

int64_t Devices::share_bytes(int rank, int ranks) const {
  if (kind_ == DeviceKind::cpu) return physical_memory_bytes() / ranks;
  const int64_t reserved_bytes = kReservedBytes + (own_gpu_ ? kNcclBytes : 0);
  const int64_t bytes = (gpu_of(rank).free_bytes - reserved_bytes) / ranks_on_gpu(rank, ranks) - kRankBytes;
  return std::max<int64_t>(bytes, 0) / Arena::kAlignment * Arena::kAlignment;
}

std::unique_ptr<Backend> Devices::make(int rank, int ranks, int64_t arena_bytes, Trace& trace) const {
  if (kind_ == DeviceKind::cpu) {
    const auto first_core = threads_.pinned ? std::optional(rank * threads_.per_rank) : std::nullopt;
    return make_cpu_backend(arena_bytes, trace, {threads_.per_rank, first_core});
  }
  return module_->make_backend({gpu_of(rank).index, std::min(arena_bytes, share_bytes(rank, ranks)), attention_}, trace);
}

std::string Devices::rates_name(Dtype dtype) const {
  std::string device = kind_ == DeviceKind::cpu ? device_name(threads_.per_rank) : machine_.devices.front().name;
  if (kind_ == DeviceKind::cpu && threads_.pinned) device += ", pinned";
  return dtype == Dtype::f32 ? device : device + ", bf16";
}

int Devices::worker_count() const {
  if (own_gpu_) return 0;
  return kind_ == DeviceKind::cpu ? usable_cores() : int(machine_.devices.size());
}

int64_t Devices::used_bytes() const {
  return kind_ == DeviceKind::cpu ? 0 : module_->used_bytes(machine_.devices.front().index);
}

int64_t Devices::bytes_of_ranks(int64_t arena_bytes, int64_t ranks) const {
  if (kind_ == DeviceKind::cpu) return 0;
  return ranks_on_gpu(0, own_gpu_ ? 1 : int(ranks)) * (arena_bytes + kCudaRankBytes);
}

std::unique_ptr<Offload> Devices::make_offload(const Config& config, int rank, int64_t bytes,
                                               Trace& trace) const {
  if (kind_ == DeviceKind::cpu) return make_file_offload(config.memory.offload, bytes, trace);
  // A container that asks for too much is ended, without a word from CUDA.
  const int64_t ranks = own_gpu_ ? 1 : config.run.ranks;  // of this process; others may be on other machines
  const double all = double(bytes) * double(ranks), there_is = double(physical_memory_bytes());
  if (all > there_is) {
    throw Error(fmt::format("{} ranks ask for {} of pinned host memory, {} bytes each; this machine has {}",
                            ranks, human_bytes(all), bytes, human_bytes(there_is)),
                "choose a shorter run.seq_len, fewer layers or run.dtype = \"bf16\", or keep block inputs on the GPU: "
                "memory.offload = \"\"");
  }
  return module_->make_offload(gpu_of(rank).index, bytes, trace);
}

std::string Devices::name() const {
  if (kind_ == DeviceKind::cpu) {
    return fmt::format("{}, {} {}thread{} a rank", cpu_isa_name(), threads_.per_rank, threads_.pinned ? "pinned " : "",
                       threads_.per_rank == 1 ? "" : "s");
  }
  const size_t gpus = machine_.devices.size();
  return fmt::format("{}{}", gpus > 1 ? fmt::format("{} x ", gpus) : "", machine_.devices.front().name);
}

}  // namespace ringlet
