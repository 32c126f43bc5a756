#pragma once

#include <cuda_runtime.h>

#include <atomic>
#include <cstdint>
#include <deque>
#include <mutex>
#include <vector>

#include "kernels/cuda/device_timeline.h"

namespace ringlet::cuda {

/// The progress of one stream, by CUDA events that are used again and again. Any thread may call everything.
class StreamTimeline final : public DeviceTimeline {
 public:
  /// The stream must outlive this.
  explicit StreamTimeline(cudaStream_t stream) : stream_(stream) {}
  ~StreamTimeline() override;
  StreamTimeline(const StreamTimeline&) = delete;
  StreamTimeline& operator=(const StreamTimeline&) = delete;

  /// The point that the stream has come to when all that was put on it up to here is done.
  Event record();
  /// False for good after the device has failed: `wait` says why.
  bool reached(int64_t value) const override;
  /// Throws Error when the device has failed.
  void wait(int64_t value) override;
  bool is_of_ranks() const override { return false; }

  void make_wait(cudaStream_t stream, int64_t value) override;

 private:
  struct Mark {
    int64_t value;
    cudaEvent_t event;
  };
  cudaEvent_t unused_event();
  /// Moves marks that have been reached to the unused ones.
  void look() const;

  const cudaStream_t stream_;
  mutable std::mutex mutex_;
  mutable std::atomic<int64_t> completed_{0};      // the largest value seen to be reached
  mutable std::atomic<int> failure_{cudaSuccess};  // of the device
  mutable std::deque<Mark> pending_;               // in the order of their values
  mutable std::vector<cudaEvent_t> unused_;
  int64_t recorded_ = 0;
};

/// Is everything on `stream` done? Throws Error when the device has failed.
bool is_idle(cudaStream_t stream);

/// Between two looks at the device: nothing at first, then sleeps, so that ranks may outnumber cores.
class Pause {
 public:
  void take();

 private:
  int looks_ = 0;
};

/// The host sleeps until everything on `stream` is done, and calls sign_of_life meanwhile. Throws Error when
/// the device has failed.
template <class SignOfLife>
void wait_until_idle(cudaStream_t stream, const SignOfLife& sign_of_life) {
  for (Pause pause; !is_idle(stream); pause.take()) sign_of_life();
}

}  // namespace ringlet::cuda
