// The CUDA module's entry, and what it knows about the machine.
// No {fmt} here: nvcc refuses its formats that are checked at compile time.
#include <cuda_runtime.h>

#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/current_device.h"
#include "kernels/cuda/host_offload.h"
#include "kernels/cuda/nccl_comm.h"
#include "kernels/cuda/rank_memory.h"
#include "kernels/cuda_module.h"

namespace ringlet {
namespace {

/// Empty: that it runs shows that the module has code for the device and that the device answers.
__global__ void probe() {}

/// The error's text; forgets the error, so that the next call does not report it again.
std::string forget(cudaError_t status) {
  cudaGetLastError();
  return cudaGetErrorString(status);
}

/// Why the count of devices could not be had; one line.
std::string no_device(cudaError_t status, const CudaMachine& machine) {
  const std::string text = forget(status);
  // The runtime reports a missing driver as one that is too old; only the version tells them apart.
  if (machine.driver_version == 0) return "no driver";
  if (status == cudaErrorInsufficientDriver && machine.driver_version < machine.runtime_version) {
    return "the driver is for CUDA " + cuda_version_text(machine.driver_version) +
           ", too old for CUDA " + cuda_version_text(machine.runtime_version) + " of this build";
  }
  if (status == cudaErrorNoDevice) return "a driver, but no GPU that this program may use";
  return "CUDA does not start: " + text;
}

std::vector<int32_t> peers_of(int device, int count) {
  std::vector<int32_t> peers;
  for (int other = 0; other < count; ++other) {
    int reachable = 0;
    if (other == device) continue;
    if (const auto status = cudaDeviceCanAccessPeer(&reachable, device, other)) forget(status);
    if (reachable != 0) peers.push_back(other);
  }
  return peers;
}

cudaError_t run_probe() {
  probe<<<1, 1>>>();
  const cudaError_t launched = cudaGetLastError();
  return launched == cudaSuccess ? cudaDeviceSynchronize() : launched;
}

CudaDevice examine_device(int device, int count) {
  CudaDevice found;
  found.index = device;
  cudaDeviceProp properties{};
  if (const auto status = cudaGetDeviceProperties(&properties, device)) {
    found.trouble = forget(status);
    return found;
  }
  found.name = properties.name;
  found.compute_capability = 10 * properties.major + properties.minor;
  found.multiprocessor_count = properties.multiProcessorCount;
  found.total_bytes = int64_t(properties.totalGlobalMem);
  found.peers = peers_of(device, count);
  size_t free_bytes = 0, total_bytes = 0;
  cudaError_t status = cudaSetDevice(device);
  if (status == cudaSuccess) status = cudaMemGetInfo(&free_bytes, &total_bytes);
  if (status == cudaSuccess) {
    found.free_bytes = int64_t(free_bytes);
    status = run_probe();
  }
  if (status != cudaSuccess) found.trouble = forget(status);
  return found;
}

/// Versions, and how many devices there are: none, and why, where there is trouble.
CudaMachine count_devices(int& count) {
  CudaMachine machine;
  cudaDriverGetVersion(&machine.driver_version);
  cudaRuntimeGetVersion(&machine.runtime_version);
  count = 0;
  if (const auto status = cudaGetDeviceCount(&count)) {
    machine.trouble = no_device(status, machine);
    count = 0;
  }
  return machine;
}

CudaMachine examine_cuda() {
  int count = 0;
  CudaMachine machine = count_devices(count);
  for (int device = 0; device < count; ++device) {
    machine.devices.push_back(examine_device(device, count));
  }
  return machine;
}

CudaMachine examine_own_cuda(int local_rank) {
  int count = 0;
  CudaMachine machine = count_devices(count);
  if (!machine.trouble.empty()) return machine;
  if (count > 1 && local_rank >= count) {
    machine.trouble = "process " + std::to_string(local_rank) + " of this machine has none of its " +
                      std::to_string(count) + " for itself";
  } else {
    machine.devices.push_back(examine_device(count == 1 ? 0 : local_rank, count));
  }
  return machine;
}

int64_t used_bytes(int device) {
  const cuda::CurrentDevice current(device);
  size_t free_bytes = 0, total_bytes = 0;
  cuda::check_cuda(cudaMemGetInfo(&free_bytes, &total_bytes));
  return int64_t(total_bytes - free_bytes);
}

constexpr CudaInterface kInterface{kCudaInterfaceVersion,   examine_cuda,       cuda::make_cuda_backend,
                                   cuda::make_rank_memory,  cuda::make_nccl_id, cuda::make_nccl_comm,
                                   cuda::make_host_offload, examine_own_cuda,   used_bytes};

}  // namespace
}  // namespace ringlet

extern "C" __attribute__((visibility("default"))) const ringlet::CudaInterface*
ringlet_cuda_module() {
  return &ringlet::kInterface;
}
