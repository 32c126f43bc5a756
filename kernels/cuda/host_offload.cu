#include "kernels/cuda/host_offload.h"

#include <unistd.h>

#include <algorithm>
#include <string>
#include <vector>

#include "kernels/cuda/cuda_raii.h"
#include "kernels/cuda/current_device.h"
#include "kernels/cuda/device_timeline.h"
#include "kernels/cuda/stream_timeline.h"

namespace ringlet::cuda {
namespace {

/// Pages are locked at some GB/s, so a large room takes a minute: after each chunk there is a sign of life.
constexpr int64_t kChunkBytes = int64_t{1} << 30;

[[noreturn]] void no_room(int64_t bytes, const std::string& why) {
  throw Error(
      "no " + std::to_string(bytes) + " bytes of pinned host memory for a rank's block inputs: " + why,
      "free memory of the host; a shorter run.seq_len, fewer layers or run.dtype = \"bf16\" need less of it, "
      "memory.offload = \"\" none");
}

/// Page-locked memory of the host, in chunks.
class PinnedRoom {
 public:
  PinnedRoom(int64_t bytes, Trace& trace) : bytes_(bytes) {
    // Or else the machine would be driven out of its memory first.
    const int64_t installed = int64_t(sysconf(_SC_PHYS_PAGES)) * int64_t(sysconf(_SC_PAGESIZE));
    if (bytes > installed) no_room(bytes, "the host has " + std::to_string(installed));
    for (int64_t had = 0; had < bytes; had += kChunkBytes) {
      void* data = nullptr;
      const int64_t size = std::min(kChunkBytes, bytes - had);
      const cudaError_t status = cudaHostAlloc(&data, size_t(size), cudaHostAllocDefault);
      if (status != cudaSuccess) {
        cudaGetLastError();  // so that the next call does not report it again
        no_room(bytes, "after " + std::to_string(had) + " bytes CUDA says: " + cudaGetErrorString(status));
      }
      chunks_.emplace_back(static_cast<std::byte*>(data));
      trace.sign_of_life();
    }
  }

  int64_t bytes() const { return bytes_; }

  /// Calls visit(host bytes, where they stand in [0, count), how many) for each stretch of
  /// [offset, offset + count).
  template <class Visit>
  void for_each_stretch(int64_t offset, int64_t count, const Visit& visit) const {
    for (int64_t done = 0; done < count;) {
      const int64_t at = (offset + done) % kChunkBytes;
      const int64_t size = std::min(count - done, kChunkBytes - at);
      visit(chunks_[size_t((offset + done) / kChunkBytes)].get() + at, done, size);
      done += size;
    }
  }

 private:
  const int64_t bytes_;
  std::vector<PinnedBytes> chunks_;
};

/// Everything runs on one stream, in the order of the calls: a fetch finds what was put before it.
class HostOffload final : public Offload {
 public:
  /// The device is current.
  HostOffload(int device, int64_t bytes, Trace& trace)
      : device_(device), room_(bytes, trace), timeline_(stream_.get()) {}
  ~HostOffload() override { cudaStreamSynchronize(stream_.get()); }

  Event put(const Tensor& from, int64_t offset, Event after) override {
    const CurrentDevice current(device_);
    begin(from, offset, after);
    room_.for_each_stretch(offset, from.bytes(), [&](std::byte* host, int64_t first, int64_t count) {
      copy(host, from.data + first, count, cudaMemcpyDeviceToHost);
    });
    return timeline_.record();
  }

  Event fetch(int64_t offset, const Tensor& to, Event after) override {
    const CurrentDevice current(device_);
    begin(to, offset, after);
    room_.for_each_stretch(offset, to.bytes(), [&](const std::byte* host, int64_t first, int64_t count) {
      copy(to.data + first, host, count, cudaMemcpyHostToDevice);
    });
    return timeline_.record();
  }

 private:
  void begin(const Tensor& tensor, int64_t offset, Event after) {
    CHECK(tensor.contiguous(), "an offloaded tensor has rows apart");
    CHECK(offset >= 0 && tensor.bytes() <= room_.bytes() - offset, tensor.bytes(), " bytes at ", offset,
          " of ", room_.bytes());
    wait_for_event(stream_.get(), after);
  }
  void copy(std::byte* to, const std::byte* from, int64_t bytes, cudaMemcpyKind kind) {
    check_cuda(cudaMemcpyAsync(to, from, size_t(bytes), kind, stream_.get()));
  }

  const int device_;
  const PinnedRoom room_;
  Stream stream_;
  StreamTimeline timeline_;
};

}  // namespace

std::unique_ptr<Offload> make_host_offload(int device, int64_t bytes, Trace& trace) {
  CHECK(bytes >= 0, "room for ", bytes, " bytes");
  const CurrentDevice current(device);
  return std::make_unique<HostOffload>(device, bytes, trace);
}

}  // namespace ringlet::cuda
