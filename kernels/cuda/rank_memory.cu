#include "kernels/cuda/rank_memory.h"

#include <algorithm>
#include <map>
#include <mutex>
#include <set>
#include <utility>
#include <vector>

#include "kernels/cuda/current_device.h"
#include "kernels/cuda/rank_sum.h"

namespace ringlet::cuda {
namespace {

constexpr int64_t kCopyBlock = 256 << 20;     // bytes: `abandoned` is noticed within some milliseconds
constexpr int kCopiesAtOnce = 64;
constexpr int64_t kSumBlock = 64 << 20;       // elements, for the same reason
constexpr int64_t kStagedBlock = 1 << 20;     // bytes of each tensor that is summed on the host

/// What belongs to one device.
class Lane {
 public:
  /// The device is current.
  Lane() { load_sum_kernels(); }
  cudaStream_t stream() const { return stream_.get(); }

 private:
  UrgentStream stream_;
};

/// Elements [first, first + count) of each.
std::vector<Tensor> slices(std::span<const Tensor> tensors, int64_t first, int64_t count) {
  std::vector<Tensor> parts;
  for (const Tensor& tensor : tensors) parts.push_back(tensor.reshaped({tensor.size(), 1, 1, 1}).slice(first, count));
  return parts;
}

class DeviceMemory final : public RankMemory {
 public:
  void copy(const Tensor& from, const Tensor& to, const std::atomic<bool>& abandoned) override {
    const Copy one{from, to};
    copy_all({&one, 1}, abandoned);
  }
  int copies_at_once() const override { return kCopiesAtOnce; }
  void copy_all(std::span<const Copy> copies, const std::atomic<bool>& abandoned) override;
  void sum(std::span<const Tensor> inputs, std::span<const Tensor> outputs,
           const std::atomic<bool>& abandoned) override;

 private:
  // The rest is called with the lock held.
  Lane& lane(int device);
  bool reaches(int device, int other);
  bool all_reach_each_other(const std::set<int>& devices);
  struct Route {
    int device;  // that copies; kHost: none
    bool within_device;
  };
  Route route_of(const Copy& copy);
  void start_copy(Lane& lane, const Copy& copy, bool within_device, const std::atomic<bool>& abandoned);
  void copy_bytes(Lane& lane, const std::byte* from, std::byte* to, int64_t bytes);
  void sum_on_devices(std::span<const Tensor> inputs, std::span<const Tensor> outputs, const std::set<int>& devices,
                      const std::atomic<bool>& abandoned);
  void sum_on_host(std::span<const Tensor> inputs, std::span<const Tensor> outputs,
                   const std::set<int>& devices, const std::atomic<bool>& abandoned);

  const std::unique_ptr<RankMemory> host_ = make_host_memory();
  std::mutex mutex_;
  std::map<int, Lane> lanes_;
  std::map<std::pair<int, int>, bool> reach_;  // first can read and write the memory of second
};

Lane& DeviceMemory::lane(int device) {
  const auto found = lanes_.find(device);
  if (found != lanes_.end()) return found->second;
  const CurrentDevice current(device);
  return lanes_.try_emplace(device).first->second;
}

bool DeviceMemory::reaches(int device, int other) {
  const auto [entry, is_new] = reach_.try_emplace({device, other}, device == other);
  if (!is_new || device == other) return entry->second;
  const CurrentDevice current(device);
  int possible = 0;
  check_cuda(cudaDeviceCanAccessPeer(&possible, device, other));
  if (possible == 0) return false;
  const cudaError_t status = cudaDeviceEnablePeerAccess(other, 0);
  if (status != cudaSuccess) cudaGetLastError();  // so that the next call does not report it again
  entry->second = status == cudaSuccess || status == cudaErrorPeerAccessAlreadyEnabled;
  return entry->second;
}

bool DeviceMemory::all_reach_each_other(const std::set<int>& devices) {
  return std::ranges::all_of(devices, [&](int device) {
    return std::ranges::all_of(devices, [&](int other) { return reaches(device, other); });
  });
}

void DeviceMemory::copy_bytes(Lane& lane, const std::byte* from, std::byte* to, int64_t bytes) {
  check_cuda(cudaMemcpyAsync(to, from, size_t(bytes), cudaMemcpyDefault, lane.stream()));
  check_cuda(cudaStreamSynchronize(lane.stream()));
}

DeviceMemory::Route DeviceMemory::route_of(const Copy& copy) {
  const int source = device_of(copy.from.data), target = device_of(copy.to.data);
  if (source != kHost && target != kHost) reaches(source, target);  // if not, the driver goes by way of the host
  return {source != kHost ? source : target, source == target};
}

/// On the stream. Within a device by its copy engine, where that can be asked for: a kernel that copies takes turns
/// with those that compute.
void start_bytes(cudaStream_t stream, const std::byte* from, std::byte* to, size_t bytes, bool within_device) {
#if CUDART_VERSION >= 13000
  if (!within_device) return check_cuda(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream));
  cudaMemcpyAttributes attributes{};
  attributes.srcAccessOrder = cudaMemcpySrcAccessOrderStream;
  attributes.flags = cudaMemcpyFlagPreferOverlapWithCompute;
  void* const target = to;
  const void* const source = from;
  size_t first = 0;
  check_cuda(cudaMemcpyBatchAsync(&target, &source, &bytes, 1, &attributes, &first, 1, stream));
#else
  static_cast<void>(within_device);
  check_cuda(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream));
#endif
}

void DeviceMemory::start_copy(Lane& lane, const Copy& copy, bool within_device, const std::atomic<bool>& abandoned) {
  const int64_t bytes = copy.from.bytes();
  for (int64_t first = 0; first < bytes && !abandoned; first += kCopyBlock) {
    if (first > 0) check_cuda(cudaStreamSynchronize(lane.stream()));
    const size_t count = size_t(std::min(kCopyBlock, bytes - first));
    start_bytes(lane.stream(), copy.from.data + first, copy.to.data + first, count, within_device);
  }
}

void DeviceMemory::copy_all(std::span<const Copy> copies, const std::atomic<bool>& abandoned) {
  const std::lock_guard lock(mutex_);
  std::set<int> devices;
  for (const Copy& copy : copies) {
    if (copy.from.data == copy.to.data || copy.from.bytes() == 0) continue;
    const auto [device, within_device] = route_of(copy);
    if (device == kHost) {
      host_->copy(copy.from, copy.to, abandoned);
      continue;
    }
    Lane& chosen = lane(device);
    const CurrentDevice current(device);
    devices.insert(device);
    start_copy(chosen, copy, within_device, abandoned);
  }
  for (const int device : devices) check_cuda(cudaStreamSynchronize(lane(device).stream()));
}

void DeviceMemory::sum(std::span<const Tensor> inputs, std::span<const Tensor> outputs,
                       const std::atomic<bool>& abandoned) {
  if (inputs[0].size() == 0) return;
  std::set<int> devices;
  for (const Tensor& tensor : inputs) devices.insert(device_of(tensor.data));
  for (const Tensor& tensor : outputs) devices.insert(device_of(tensor.data));
  if (devices == std::set<int>{kHost}) return host_->sum(inputs, outputs, abandoned);
  const std::lock_guard lock(mutex_);
  const bool fits = inputs.size() <= kMostSummed && outputs.size() <= kMostSummed;
  if (fits && !devices.contains(kHost) && all_reach_each_other(devices)) {
    return sum_on_devices(inputs, outputs, devices, abandoned);
  }
  sum_on_host(inputs, outputs, devices, abandoned);
}

void DeviceMemory::sum_on_devices(std::span<const Tensor> inputs, std::span<const Tensor> outputs,
                                  const std::set<int>& devices, const std::atomic<bool>& abandoned) {
  // Each device sums a run of its own, all at once. Runs start at multiples of 16 bytes.
  const int64_t size = inputs[0].size(), device_count = int64_t(devices.size());
  const int64_t run = std::min(kSumBlock, ((size + device_count - 1) / device_count + 3) / 4 * 4);
  for (int64_t first = 0; first < size && !abandoned;) {
    for (const int device : devices) {
      const int64_t count = std::min(run, size - first);
      if (count == 0) break;
      Lane& chosen = lane(device);
      const CurrentDevice current(device);
      launch_sum(chosen.stream(), slices(inputs, first, count), slices(outputs, first, count));
      first += count;
    }
    for (const int device : devices) check_cuda(cudaStreamSynchronize(lane(device).stream()));
  }
}

void DeviceMemory::sum_on_host(std::span<const Tensor> inputs, std::span<const Tensor> outputs,
                               const std::set<int>& devices, const std::atomic<bool>& abandoned) {
  const int device = *devices.rbegin();
  Lane& chosen = lane(device);
  const CurrentDevice current(device);
  const int64_t bytes = inputs[0].bytes(), block = std::min(bytes, kStagedBlock);
  std::vector<std::byte> staging(size_t(block) * inputs.size());
  for (int64_t first = 0; first < bytes && !abandoned; first += block) {
    const int64_t count = std::min(block, bytes - first);
    std::vector<Tensor> staged;
    for (size_t i = 0; i < inputs.size(); ++i) {
      std::byte* data = staging.data() + int64_t(i) * block;
      copy_bytes(chosen, inputs[i].data + first, data, count);
      const Dtype dtype = inputs[0].dtype;
      staged.push_back(make_tensor(data, dtype, {count / element_bytes(dtype), 1, 1, 1}));
    }
    const std::span<const Tensor> views(staged);
    host_->sum(views, views.first(1), abandoned);
    for (const Tensor& output : outputs) copy_bytes(chosen, staging.data(), output.data + first, count);
  }
}

}  // namespace

std::unique_ptr<RankMemory> make_rank_memory() { return std::make_unique<DeviceMemory>(); }

}  // namespace ringlet::cuda
