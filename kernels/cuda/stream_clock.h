#pragma once

#include <cuda_runtime.h>

#include <memory>
#include <vector>

#include "kernels/trace.h"
#include "kernels/work_clock.h"

namespace ringlet::cuda {

/// Times of work on one stream, by CUDA events before and behind it; an NVTX range round it. One thread. The stream and
/// the trace, which gets signs of life while `take` waits, must outlive it.
class StreamClock final : public WorkClock {
 public:
  StreamClock(cudaStream_t stream, Trace& trace) : stream_(stream), trace_(trace) {}
  void begin(const char* name) override;
  void end() override;
  std::vector<Stretch> take() override;

 private:
  struct Destroy {
    void operator()(cudaEvent_t event) const { cudaEventDestroy(event); }
  };
  using TimedEvent = std::unique_ptr<CUevent_st, Destroy>;
  cudaEvent_t mark();

  const cudaStream_t stream_;
  Trace& trace_;
  std::vector<TimedEvent> events_;  // used again and again
  size_t used_ = 0;
};

}  // namespace ringlet::cuda
