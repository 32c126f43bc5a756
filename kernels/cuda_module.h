#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "kernels/backend.h"
#include "kernels/comm.h"
#include "kernels/comm/rank_memory.h"
#include "kernels/offload.h"
#include "kernels/trace.h"

namespace ringlet {

/// One GPU.
struct CudaDevice {
  std::string name;
  int32_t compute_capability = 0;  // 10 * major + minor
  int32_t multiprocessor_count = 0;
  int64_t total_bytes = 0;
  int64_t free_bytes = -1;     // -1: unknown, trouble says why
  std::vector<int32_t> peers;  // devices whose memory it can reach directly
  std::string trouble;         // one line: why it cannot run this build's code; empty where it can
  int32_t index = 0;           // as CUDA counts
};

/// What there is of CUDA on this machine.
struct CudaMachine {
  int32_t driver_version = 0;   // newest CUDA that it serves: 1000 * major + 10 * minor; 0: none
  int32_t runtime_version = 0;  // CUDA of this build, in the same way
  std::vector<CudaDevice> devices;
  std::string trouble;  // one line: why there is no device; empty where there is one
};

/// 13000 as "13.0".
inline std::string cuda_version_text(int32_t version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

/// Which kernels compute attention. automatic: the fastest that serves dtype, head_dim and device.
/// plain: any head_dim, f32 or bf16, no tensor cores. mma: bf16, head_dim 64 or 128, mma.sync, sm_80 and later.
/// wgmma: bf16, head_dim 64 or 128, sm_90a only. Who asks for one that does not serve gets an Error.
enum class CudaAttention : uint8_t { automatic, plain, mma, wgmma };

/// Which algorithms large matrix products in bf16 choose from, by trials when a shape is new. equal_bits: those whose
/// result has the bits of cuBLASLt's first proposal, so that no trial changes a result. fastest: all, to measure
/// by; equal runs may then differ in bits.
enum class CudaTuning : uint8_t { equal_bits, fastest };

/// Of a rank's allocation on its GPU beside the arena: the workspace of cuBLASLt, the scratch of operations.
constexpr int64_t kCudaRankBytes = int64_t{64} << 20;

struct CudaBackendOptions {
  int device = 0;
  int64_t arena_bytes = 0;  // one allocation, with kCudaRankBytes
  CudaAttention attention = CudaAttention::automatic;
  CudaTuning tuning = CudaTuning::equal_bits;
};

/// One rank of a world of processes, each with a GPU of its own.
struct NcclOptions {
  std::vector<std::byte> id;  // of make_nccl_id on rank 0, the same on all ranks
  int rank = 0, size = 1;
  int device = 0;
  int max_ctas = 0;  // multiprocessors that messages may take from computation; 0: NCCL chooses
  /// For all ranks to come to an operation that this one is ready for.
  std::chrono::milliseconds timeout{600'000};
  /// Told of the first failure of each communicator, by whatever thread finds it, before waits throw: cause and
  /// advice. May not call the Comm; may be absent.
  std::function<void(const std::string& cause, const std::string& advice)> on_failure;
};

/// Counts up whenever something that the program and the module share changes its shape or meaning.
constexpr int32_t kCudaInterfaceVersion = 6;

/// What the module offers. The version stays first in every version: it is read before the rest.
struct CudaInterface {
  int32_t version;
  /// Asks the driver, and lets every device run an empty kernel: makes a context on each and
  /// waits for it. Reports every failure in a `trouble`; throws std::bad_alloc only.
  CudaMachine (*examine)();
  /// A rank's device. Throws Error when it cannot be had: no such GPU, not that much memory free.
  std::unique_ptr<Backend> (*make_backend)(const CudaBackendOptions& options, Trace& trace) = nullptr;
  /// What moves and sums tensors of ranks that are threads of one process, on whatever GPU or host memory they stand.
  std::unique_ptr<RankMemory> (*make_rank_memory)() = nullptr;
  /// What rank 0 shares with all ranks (kernels/comm/rendezvous.h) before they call make_nccl_comm. Throws Error
  /// where NCCL is not installed.
  std::vector<std::byte> (*make_nccl_id)() = nullptr;
  /// The world of all ranks. Collective; waits, at most for the timeout. Throws Error.
  std::unique_ptr<Comm> (*make_nccl_comm)(const NcclOptions& options) = nullptr;
  /// Room for so many bytes in pinned memory of the host, beside a rank's device: it is page-locked at once (some
  /// GB a second, with signs of life of the rank), and copied to and fro by a stream of its own, in the order of
  /// the calls. Must die before the device. Throws Error when the host has not that much.
  std::unique_ptr<Offload> (*make_offload)(int device, int64_t bytes, Trace& trace) = nullptr;
  /// As examine, of one GPU, and without touching the others, whose memory would hold a context: that of the process
  /// which is number local_rank on this machine, or the only one that the process sees.
  CudaMachine (*examine_own)(int local_rank) = nullptr;
  /// Bytes of a GPU's memory that are taken now, by whomever. Throws Error.
  int64_t (*used_bytes)(int device) = nullptr;
};

/// The module's only symbol: a function without arguments that returns the interface.
constexpr const char* kCudaModuleEntry = "ringlet_cuda_module";
using CudaModuleEntry = const CudaInterface* (*)();

/// The module, or why there is none.
struct CudaModule {
  const CudaInterface* interface = nullptr;  // lives as long as the program
  std::string trouble;                       // one line; empty where there is an interface
};

/// libringlet_cuda.so in the folder of the running program.
std::string cuda_module_path();

/// Loads a CUDA module, and with it the libraries of CUDA that the program itself does without.
/// Whatever is wrong with the file ends up in `trouble`. A module stays loaded for good.
CudaModule open_cuda_module(const std::string& path = cuda_module_path());

}  // namespace ringlet
