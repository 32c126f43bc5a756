#pragma once

#include "kernels/event.h"
#include "kernels/tensor.h"

namespace ringlet {

/// Room beside a device's memory where tensors are put and fetched again, in the background and in order: a file for the
/// CPU (cpu/file_offload.h), the host's memory for a GPU (cuda/host_offload.h). One rank's; not for several threads.
class Offload {
 public:
  virtual ~Offload() = default;
  /// Copies `from`, contiguous, to byte `offset` once `after` is reached. It is in flight until the event was waited for.
  virtual Event put(const Tensor& from, int64_t offset, Event after) = 0;
  /// Copies back what was put there, over `to`, which is in flight until then. The event's wait throws Error when a copy
  /// failed.
  virtual Event fetch(int64_t offset, const Tensor& to, Event after) = 0;
};

}  // namespace ringlet
