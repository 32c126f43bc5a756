#pragma once

#include <cuda_runtime.h>

#include <memory>
#include <source_location>
#include <string>

#include "kernels/check.h"

namespace ringlet::cuda {

/// Throws Error with CUDA's text and the caller's line. Call it with cudaGetLastError() after each launch.
inline void check_cuda(cudaError_t status, std::source_location at = std::source_location::current()) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // so that the next call does not report it again
  fail("CUDA call succeeded", at.file_name(), int(at.line()), cudaGetErrorString(status));
}

struct CudaFree {
  void operator()(std::byte* bytes) const { cudaFree(bytes); }
};
/// Device memory.
using CudaBytes = std::unique_ptr<std::byte[], CudaFree>;
inline CudaBytes allocate_bytes(int64_t bytes) {
  void* data = nullptr;
  check_cuda(cudaMalloc(&data, size_t(bytes)));
  return CudaBytes(static_cast<std::byte*>(data));
}

struct FreePinned {
  void operator()(std::byte* bytes) const { cudaFreeHost(bytes); }
};
/// Page-locked memory of the host.
using PinnedBytes = std::unique_ptr<std::byte[], FreePinned>;

/// A stream that does not wait for the default stream.
class Stream {
 public:
  Stream() { check_cuda(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking)); }
  ~Stream() { cudaStreamDestroy(stream_); }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  cudaStream_t get() const { return stream_; }

 private:
  cudaStream_t stream_ = nullptr;
};

}  // namespace ringlet::cuda
