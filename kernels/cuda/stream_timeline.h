#pragma once

#include <cuda_runtime.h>

#include "kernels/event.h"

namespace ringlet::cuda {

/// A Timeline of work on a GPU: streams of this process can wait for its points without stopping the host.
class StreamTimeline : public Timeline {
 public:
  /// What is put on `stream` from now on runs when the queue has come to `value`. Any thread. Says nothing of failures:
  /// after one the stream goes on, and the host finds out when it waits.
  virtual void stream_wait(cudaStream_t stream, int64_t value) = 0;
};

/// As above where the event's timeline is one of a GPU; else the host waits.
inline void wait_for_event(cudaStream_t stream, Event event) {
  if (event.reached()) return;
  if (auto* timeline = dynamic_cast<StreamTimeline*>(event.timeline)) timeline->stream_wait(stream, event.value);
  else event.wait();
}

}  // namespace ringlet::cuda
