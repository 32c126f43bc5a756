#pragma once

#include <deque>
#include <mutex>

#include "kernels/cuda/cuda_raii.h"
#include "kernels/tensor.h"

namespace ringlet::cuda {

/// Copies on a device of tensors in the host's memory, for one operation at a time.
class HostStaging {
 public:
  HostStaging() = default;
  HostStaging(const HostStaging&) = delete;
  HostStaging& operator=(const HostStaging&) = delete;

  /// Room for so many bytes, those of all tensors and kAlignment for each. All earlier use is over, on the stream too.
  void reserve(int64_t bytes);
  /// Device memory of the tensor's size.
  Tensor room(const Tensor& host);
  /// room() with the tensor's values, once the stream has come here. They are read at once.
  Tensor upload(cudaStream_t stream, const Tensor& host);
  /// The stream writes the values to the host's tensor when it has come here.
  void download(cudaStream_t stream, const Tensor& staged, const Tensor& host);
  /// After it returns nothing is written to the host's tensors any more, whatever the stream still does. For good.
  /// Any thread.
  void cancel();

  static constexpr int64_t kAlignment = 256;

 private:
  struct Landing {
    const std::byte* from;
    std::byte* to;
    size_t bytes;
    HostStaging* staging;
  };
  static void land(void* landing);
  std::byte* pinned(const Tensor& staged) const { return pinned_.get() + (staged.data - device_.get()); }

  PinnedBytes pinned_;
  CudaBytes device_;
  int64_t capacity_ = 0, used_ = 0;
  std::deque<Landing> landings_;
  std::mutex mutex_;  // guards what follows
  bool cancelled_ = false;
};

}  // namespace ringlet::cuda
