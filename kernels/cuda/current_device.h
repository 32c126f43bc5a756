#pragma once

#include "kernels/cuda/cuda_raii.h"

namespace ringlet::cuda {

/// Makes a device current; gives the thread's own back.
class CurrentDevice {
 public:
  explicit CurrentDevice(int device) : device_(device) {
    check_cuda(cudaGetDevice(&previous_));
    if (previous_ != device_) check_cuda(cudaSetDevice(device_));
  }
  ~CurrentDevice() {
    if (previous_ != device_) cudaSetDevice(previous_);
  }
  CurrentDevice(const CurrentDevice&) = delete;
  CurrentDevice& operator=(const CurrentDevice&) = delete;

 private:
  const int device_;
  int previous_ = 0;
};

/// Where a pointer's memory stands: a device, or kHost (pinned or not).
constexpr int kHost = -1;
inline int device_of(const std::byte* pointer) {
  cudaPointerAttributes attributes{};
  check_cuda(cudaPointerGetAttributes(&attributes, pointer));
  const bool on_device = attributes.type == cudaMemoryTypeDevice || attributes.type == cudaMemoryTypeManaged;
  return on_device ? attributes.device : kHost;
}

/// A stream that does not wait for the default stream, and whose work goes before computation: others wait for what it
/// moves.
class UrgentStream {
 public:
  /// On the current device.
  UrgentStream() {
    int least = 0, greatest = 0;
    check_cuda(cudaDeviceGetStreamPriorityRange(&least, &greatest));
    check_cuda(cudaStreamCreateWithPriority(&stream_, cudaStreamNonBlocking, greatest));
  }
  ~UrgentStream() { cudaStreamDestroy(stream_); }
  UrgentStream(const UrgentStream&) = delete;
  UrgentStream& operator=(const UrgentStream&) = delete;
  cudaStream_t get() const { return stream_; }

 private:
  cudaStream_t stream_ = nullptr;
};

}  // namespace ringlet::cuda
