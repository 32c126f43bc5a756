#include "kernels/cuda/stream_clock.h"

#include <nvtx3/nvToolsExt.h>

#include "kernels/cuda/cuda_raii.h"
#include "kernels/cuda/stream_timeline.h"

namespace ringlet::cuda {
namespace {

using std::chrono::steady_clock;

constexpr int kMostTries = 10;
constexpr std::chrono::microseconds kShortTrip{20};

/// When an idle stream passed `event`: halfway between asking for it and seeing it.
struct Passing {
  cudaEvent_t event;
  steady_clock::time_point time;
  steady_clock::duration trip;
};
Passing pass(cudaStream_t stream, cudaEvent_t event) {
  const auto before = steady_clock::now();
  check_cuda(cudaEventRecord(event, stream));
  while (!is_idle(stream)) {
  }
  const auto trip = steady_clock::now() - before;
  return {event, before + trip / 2, trip};
}

}  // namespace

cudaEvent_t StreamClock::mark() {
  if (used_ == events_.size()) {
    cudaEvent_t event = nullptr;
    check_cuda(cudaEventCreate(&event));
    events_.emplace_back(event);
  }
  return events_[used_++].get();
}

void StreamClock::begin(const char* name) {
  nvtxRangePushA(name);
  check_cuda(cudaEventRecord(mark(), stream_));
}

void StreamClock::end() {
  check_cuda(cudaEventRecord(mark(), stream_));
  nvtxRangePop();
}

std::vector<WorkClock::Stretch> StreamClock::take() {
  wait_until_idle(stream_, [this] { trace_.sign_of_life(); });
  const size_t count = used_;
  // The host may be put off its core, and the GPU be busy with others: the shortest trip tells best.
  Passing best = pass(stream_, mark());
  for (int i = 1; i < kMostTries && best.trip > kShortTrip; ++i) {
    const Passing next = pass(stream_, mark());
    if (next.trip < best.trip) best = next;
  }
  const auto time_of = [&](size_t index) {
    float milliseconds = 0;
    check_cuda(cudaEventElapsedTime(&milliseconds, events_[index].get(), best.event));
    return best.time - std::chrono::duration_cast<Time::duration>(std::chrono::duration<double, std::milli>(milliseconds));
  };
  std::vector<Stretch> stretches;
  for (size_t i = 0; i + 1 < count; i += 2) stretches.push_back({time_of(i), time_of(i + 1)});
  used_ = 0;
  return stretches;
}

}  // namespace ringlet::cuda
