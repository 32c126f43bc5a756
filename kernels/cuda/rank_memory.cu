#include "kernels/cuda/rank_memory.h"

#include <algorithm>
#include <map>
#include <mutex>
#include <set>
#include <utility>
#include <vector>

#include "kernels/cuda/cuda_raii.h"

namespace ringlet::cuda {
namespace {

constexpr int kHost = -1;
constexpr int64_t kCopyBlock = 256 << 20;     // bytes: `abandoned` is noticed within some milliseconds
constexpr int64_t kSumBlock = 64 << 20;       // elements, for the same reason
constexpr int64_t kStagedBlock = 1 << 20;     // bytes of each tensor that is summed on the host
constexpr int kMaxPointers = 128;             // of each list; both are parameters of the kernel, 4 KiB at most
constexpr int kThreads = 256, kMaxBlocks = 1024;

struct SumPointers {
  const std::byte* inputs[kMaxPointers];
  std::byte* outputs[kMaxPointers];
  int input_count, output_count;
};

__device__ void add_to(float& sum, float value) { sum += value; }
__device__ void add_to(double& sum, double value) { sum += value; }
__device__ void add_to(float4& sum, float4 value) {
  sum.x += value.x, sum.y += value.y, sum.z += value.z, sum.w += value.w;
}
__device__ void add_to(double2& sum, double2 value) { sum.x += value.x, sum.y += value.y; }

/// A thread reads all inputs of its elements before it writes, so that an output may be an input. V: element or vector.
template <class V>
__global__ void sum_kernel(const __grid_constant__ SumPointers pointers, int64_t count) {
  for (int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i < count; i += int64_t(gridDim.x) * kThreads) {
    V sum = reinterpret_cast<const V*>(pointers.inputs[0])[i];
#pragma unroll 4
    for (int rank = 1; rank < pointers.input_count; ++rank) {
      add_to(sum, reinterpret_cast<const V*>(pointers.inputs[rank])[i]);
    }
    for (int rank = 0; rank < pointers.output_count; ++rank) {
      reinterpret_cast<V*>(pointers.outputs[rank])[i] = sum;
    }
  }
}

/// A device's kernels are loaded by the first launch of each unless asked for before, and loading may wait for all streams.
void load_kernels() {
  cudaFuncAttributes attributes;
  check_cuda(cudaFuncGetAttributes(&attributes, sum_kernel<float>));
  check_cuda(cudaFuncGetAttributes(&attributes, sum_kernel<float4>));
  check_cuda(cudaFuncGetAttributes(&attributes, sum_kernel<double>));
  check_cuda(cudaFuncGetAttributes(&attributes, sum_kernel<double2>));
}

void advance(SumPointers& pointers, int64_t bytes) {
  for (int i = 0; i < pointers.input_count; ++i) pointers.inputs[i] += bytes;
  for (int i = 0; i < pointers.output_count; ++i) pointers.outputs[i] += bytes;
}

bool all_aligned(const SumPointers& pointers) {
  uintptr_t bits = 0;
  for (int i = 0; i < pointers.input_count; ++i) bits |= reinterpret_cast<uintptr_t>(pointers.inputs[i]);
  for (int i = 0; i < pointers.output_count; ++i) bits |= reinterpret_cast<uintptr_t>(pointers.outputs[i]);
  return bits % 16 == 0;
}

template <class V>
void launch(cudaStream_t stream, const SumPointers& pointers, int64_t count) {
  if (count == 0) return;
  const int64_t blocks = std::min<int64_t>((count + kThreads - 1) / kThreads, kMaxBlocks);
  sum_kernel<V><<<unsigned(blocks), kThreads, 0, stream>>>(pointers, count);
  check_cuda(cudaGetLastError());
}

/// T: the element; V: as many of them as make 16 bytes.
template <class T, class V>
void launch_sum(cudaStream_t stream, SumPointers pointers, int64_t count) {
  constexpr int64_t kWidth = sizeof(V) / sizeof(T);
  const int64_t vectors = all_aligned(pointers) ? count / kWidth : 0;
  launch<V>(stream, pointers, vectors);
  advance(pointers, vectors * int64_t(sizeof(V)));
  launch<T>(stream, pointers, count - vectors * kWidth);
}

/// Makes a device current; gives the caller's own back.
class CurrentDevice {
 public:
  explicit CurrentDevice(int device) : device_(device) {
    check_cuda(cudaGetDevice(&previous_));
    if (previous_ != device_) check_cuda(cudaSetDevice(device_));
  }
  ~CurrentDevice() {
    if (previous_ != device_) cudaSetDevice(previous_);
  }
  CurrentDevice(const CurrentDevice&) = delete;
  CurrentDevice& operator=(const CurrentDevice&) = delete;

 private:
  const int device_;
  int previous_ = 0;
};

struct StreamDestroy {
  void operator()(cudaStream_t stream) const { cudaStreamDestroy(stream); }
};

/// What belongs to one device. Its stream goes before computation: others wait for what it moves.
class Lane {
 public:
  /// The device is current.
  Lane() {
    load_kernels();
    int least = 0, greatest = 0;
    check_cuda(cudaDeviceGetStreamPriorityRange(&least, &greatest));
    cudaStream_t stream = nullptr;
    check_cuda(cudaStreamCreateWithPriority(&stream, cudaStreamNonBlocking, greatest));
    stream_.reset(stream);
  }
  cudaStream_t stream() const { return stream_.get(); }

 private:
  std::unique_ptr<CUstream_st, StreamDestroy> stream_;
};

int device_of(const std::byte* pointer) {
  cudaPointerAttributes attributes{};
  check_cuda(cudaPointerGetAttributes(&attributes, pointer));
  const bool on_device = attributes.type == cudaMemoryTypeDevice || attributes.type == cudaMemoryTypeManaged;
  return on_device ? attributes.device : kHost;
}

class DeviceMemory final : public RankMemory {
 public:
  void copy(const Tensor& from, const Tensor& to, const std::atomic<bool>& abandoned) override;
  void sum(std::span<const Tensor> inputs, std::span<const Tensor> outputs,
           const std::atomic<bool>& abandoned) override;

 private:
  // The rest is called with the lock held.
  Lane& lane(int device);
  bool reaches(int device, int other);
  bool all_reach_each_other(const std::set<int>& devices);
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

void DeviceMemory::copy(const Tensor& from, const Tensor& to, const std::atomic<bool>& abandoned) {
  if (from.data == to.data || from.bytes() == 0) return;
  const int source = device_of(from.data), target = device_of(to.data);
  if (source == kHost && target == kHost) return host_->copy(from, to, abandoned);
  const std::lock_guard lock(mutex_);
  if (source != kHost && target != kHost) reaches(source, target);  // if not, the driver goes by way of the host
  const int device = source != kHost ? source : target;
  Lane& chosen = lane(device);
  const CurrentDevice current(device);
  for (int64_t first = 0; first < from.bytes() && !abandoned; first += kCopyBlock) {
    copy_bytes(chosen, from.data + first, to.data + first, std::min(kCopyBlock, from.bytes() - first));
  }
}

void DeviceMemory::sum(std::span<const Tensor> inputs, std::span<const Tensor> outputs,
                       const std::atomic<bool>& abandoned) {
  if (inputs[0].size() == 0) return;
  std::set<int> devices;
  for (const Tensor& tensor : inputs) devices.insert(device_of(tensor.data));
  for (const Tensor& tensor : outputs) devices.insert(device_of(tensor.data));
  if (devices == std::set<int>{kHost}) return host_->sum(inputs, outputs, abandoned);
  const std::lock_guard lock(mutex_);
  const bool fits = inputs.size() <= kMaxPointers && outputs.size() <= kMaxPointers;
  if (fits && !devices.contains(kHost) && all_reach_each_other(devices)) {
    return sum_on_devices(inputs, outputs, devices, abandoned);
  }
  sum_on_host(inputs, outputs, devices, abandoned);
}

void DeviceMemory::sum_on_devices(std::span<const Tensor> inputs, std::span<const Tensor> outputs,
                                  const std::set<int>& devices, const std::atomic<bool>& abandoned) {
  SumPointers pointers{};
  for (const Tensor& tensor : inputs) pointers.inputs[pointers.input_count++] = tensor.data;
  for (const Tensor& tensor : outputs) pointers.outputs[pointers.output_count++] = tensor.data;
  const int64_t size = inputs[0].size();
  const bool is_double = inputs[0].dtype == Dtype::f64;
  // Each device sums a run of its own, all at once. Runs start at multiples of 16 bytes.
  const int64_t device_count = int64_t(devices.size());
  const int64_t run = std::min(kSumBlock, ((size + device_count - 1) / device_count + 3) / 4 * 4);
  for (int64_t first = 0; first < size && !abandoned;) {
    for (const int device : devices) {
      const int64_t count = std::min(run, size - first);
      if (count == 0) break;
      Lane& chosen = lane(device);
      const CurrentDevice current(device);
      if (is_double) launch_sum<double, double2>(chosen.stream(), pointers, count);
      else launch_sum<float, float4>(chosen.stream(), pointers, count);
      advance(pointers, count * element_bytes(inputs[0].dtype));
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
