#pragma once

#include <memory>
#include <optional>

#include "kernels/backend.h"
#include "kernels/trace.h"

namespace ringlet {

/// A range of zeroed host memory that costs nothing until it is touched. Huge pages where the system gives them.
class HostMemory {
 public:
  /// Throws Error when the address space cannot be had.
  explicit HostMemory(int64_t bytes);
  ~HostMemory();
  HostMemory(const HostMemory&) = delete;
  HostMemory& operator=(const HostMemory&) = delete;
  std::byte* data() const { return data_; }
  int64_t bytes() const { return bytes_; }

 private:
  std::byte* data_;
  int64_t bytes_;
};

/// The threads of a CPU device, the caller's among them (1 or more; results do not depend on it). first_core: they are
/// pinned as cpu::ThreadTeam tells (thread_team.h).
struct CpuThreads {
  CpuThreads(int thread_count = 1, std::optional<int> core = {}) : count(thread_count), first_core(core) {}
  int count;
  std::optional<int> first_core;
};

/// The CPU as a device. Operations are done when their call returns. Computes on f32; bf16 is widened first, which takes
/// time and memory beside the arena (bf16_storage.h).
/// SIMD through Highway, chosen at run time (RINGLET_ISA=avx512|avx2|portable forces one).
/// `trace` gets the time spent waiting for events; it must outlive the backend.
std::unique_ptr<Backend> make_cpu_backend(int64_t arena_bytes, Trace& trace, CpuThreads threads = {});

/// Bytes that it holds beside its arena: of each thread what products pack into.
int64_t cpu_scratch_bytes(int threads);

/// The instruction set in use, for the start message: "AVX-512", "AVX2", ...
const char* cpu_isa_name();
/// One line when the kernels run on a slow path, on this processor or because RINGLET_ISA says so; else empty.
const char* cpu_isa_warning();

}  // namespace ringlet
