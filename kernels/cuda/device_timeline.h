#pragma once

#include <cuda_runtime.h>

#include "kernels/event.h"

namespace ringlet::cuda {

/// A Timeline of work on a GPU of this process.
class DeviceTimeline : public Timeline {
 public:
  /// `stream` goes on only when this timeline has come to `value`. Does not stop the host. Any thread.
  virtual void make_wait(cudaStream_t stream, int64_t value) = 0;
};

/// The same for any event: one of no GPU stops the host.
inline void wait_for_event(cudaStream_t stream, Event event) {
  if (event.reached()) return;
  if (auto* timeline = dynamic_cast<DeviceTimeline*>(event.timeline)) timeline->make_wait(stream, event.value);
  else event.wait();
}

}  // namespace ringlet::cuda
