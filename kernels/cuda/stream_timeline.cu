#include <chrono>
#include <thread>

#include "kernels/cuda/cuda_raii.h"
#include "kernels/cuda/stream_timeline.h"

namespace ringlet::cuda {

StreamTimeline::~StreamTimeline() {
  for (const Mark& mark : pending_) cudaEventDestroy(mark.event);
  for (const cudaEvent_t event : unused_) cudaEventDestroy(event);
}

cudaEvent_t StreamTimeline::unused_event() {
  if (unused_.empty()) {
    cudaEvent_t event = nullptr;
    check_cuda(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
    return event;
  }
  const cudaEvent_t event = unused_.back();
  unused_.pop_back();
  return event;
}

Event StreamTimeline::record() {
  constexpr size_t kManyPending = 64;
  const std::lock_guard lock(mutex_);
  if (pending_.size() >= kManyPending) look();  // perhaps nobody asks
  const cudaEvent_t event = unused_event();
  pending_.push_back({recorded_ + 1, event});
  if (const cudaError_t status = cudaEventRecord(event, stream_)) {
    pending_.pop_back();
    unused_.push_back(event);
    check_cuda(status);
  }
  return {this, ++recorded_};
}

void StreamTimeline::look() const {
  while (!pending_.empty() && failure_ == cudaSuccess) {
    const Mark first = pending_.front();
    const cudaError_t status = cudaEventQuery(first.event);
    if (status != cudaSuccess) {
      cudaGetLastError();  // "not ready" would be reported by the next check
      if (status != cudaErrorNotReady) failure_ = status;
      return;
    }
    pending_.pop_front();
    unused_.push_back(first.event);
    completed_.store(first.value, std::memory_order_release);
  }
}

bool StreamTimeline::reached(int64_t value) const {
  if (completed_.load(std::memory_order_acquire) >= value) return true;
  const std::lock_guard lock(mutex_);
  look();
  return completed_.load(std::memory_order_relaxed) >= value;
}

void StreamTimeline::wait(int64_t value) {
  for (Pause pause; !reached(value); pause.take()) check_cuda(cudaError_t(failure_.load()));
}

void StreamTimeline::make_wait(cudaStream_t stream, int64_t value) {
  if (stream == stream_ || reached(value)) return;
  const std::lock_guard lock(mutex_);
  check_cuda(cudaError_t(failure_.load()));
  if (completed_.load() >= value) return;  // meanwhile; the next mark is one too far
  for (const Mark& mark : pending_) {
    if (mark.value < value) continue;
    check_cuda(cudaStreamWaitEvent(stream, mark.event));
    return;
  }
}

bool is_idle(cudaStream_t stream) {
  const cudaError_t status = cudaStreamQuery(stream);
  if (status == cudaErrorNotReady) {
    cudaGetLastError();
    return false;
  }
  check_cuda(status);
  return true;
}

void Pause::take() {
  constexpr int kLooksBeforeSleep = 50;  // some 50 us
  if (++looks_ <= kLooksBeforeSleep) return;
  std::this_thread::sleep_for(std::chrono::microseconds(20));
}

}  // namespace ringlet::cuda
