#include "kernels/cuda/host_staging.h"

#include <algorithm>
#include <cstring>

namespace ringlet::cuda {
namespace {

constexpr int64_t kLeastBytes = 1 << 20;

}  // namespace

void HostStaging::reserve(int64_t bytes) {
  used_ = 0;
  landings_.clear();
  if (bytes <= capacity_) return;
  capacity_ = 0;
  const int64_t capacity = std::max(bytes, kLeastBytes);
  device_ = allocate_bytes(capacity);
  void* data = nullptr;
  check_cuda(cudaMallocHost(&data, size_t(capacity)));
  pinned_.reset(static_cast<std::byte*>(data));
  capacity_ = capacity;
}

Tensor HostStaging::room(const Tensor& host) {
  const Tensor staged = make_tensor(device_.get() + used_, host.dtype, host.shape);
  used_ += (host.bytes() + kAlignment - 1) / kAlignment * kAlignment;
  CHECK(used_ <= capacity_, used_, " bytes staged of ", capacity_);
  return staged;
}

Tensor HostStaging::upload(cudaStream_t stream, const Tensor& host) {
  const Tensor staged = room(host);
  const size_t bytes = size_t(host.bytes());
  std::memcpy(pinned(staged), host.data, bytes);
  check_cuda(cudaMemcpyAsync(staged.data, pinned(staged), bytes, cudaMemcpyHostToDevice, stream));
  return staged;
}

void HostStaging::download(cudaStream_t stream, const Tensor& staged, const Tensor& host) {
  const size_t bytes = size_t(host.bytes());
  check_cuda(cudaMemcpyAsync(pinned(staged), staged.data, bytes, cudaMemcpyDeviceToHost, stream));
  landings_.push_back({pinned(staged), host.data, bytes, this});
  check_cuda(cudaLaunchHostFunc(stream, land, &landings_.back()));
}

void HostStaging::land(void* landing) {
  const auto [from, to, bytes, staging] = *static_cast<const Landing*>(landing);
  const std::lock_guard lock(staging->mutex_);
  if (!staging->cancelled_) std::memcpy(to, from, bytes);
}

void HostStaging::cancel() {
  const std::lock_guard lock(mutex_);
  cancelled_ = true;
}

}  // namespace ringlet::cuda
