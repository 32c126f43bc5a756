#pragma once

#include <cstdint>
#include <memory>

#include "kernels/backend.h"
#include "kernels/trace.h"

namespace ringlet::test {

enum class Delays { none, random };

struct DeferredOptions {
  uint64_t seed = 1;               // of the delays
  Delays delays = Delays::random;  // some operations start up to 200 us late
};

/// The CPU backend as a device whose compute queue is a thread of its own: every operation runs
/// late, in the order of the calls, in memory that the host thread does not touch. Who reads before
/// an event was reached, or reuses memory that is in flight, is seen by the results or by
/// ThreadSanitizer. An exception in the queue ends it: `read`, `synchronize` and events that can no
/// longer be reached throw it, every time that they are asked. The destructor runs what is still in
/// the queue. `trace` must outlive the backend.
std::unique_ptr<Backend> make_deferred_backend(int64_t arena_bytes, Trace& trace,
                                               DeferredOptions options = {});

}  // namespace ringlet::test
