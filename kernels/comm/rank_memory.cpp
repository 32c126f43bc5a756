#include "kernels/comm/rank_memory.h"

#include <algorithm>
#include <cstring>

namespace ringlet {
namespace {

constexpr int64_t kSumBlock = 4096;      // elements: the running sum stays in the nearest cache
constexpr int64_t kCopyBlock = 1 << 20;  // bytes: `abandoned` is noticed within a millisecond

template <class T>
T* elements(const Tensor& tensor, int64_t first) {
  return reinterpret_cast<T*>(tensor.data) + first;
}

/// Each block is summed apart from its outputs, so that those may be inputs.
template <class T>
void sum_elements(std::span<const Tensor> inputs, std::span<const Tensor> outputs,
                  const std::atomic<bool>& abandoned) {
  T sum[kSumBlock];
  const int64_t size = inputs[0].size();
  for (int64_t first = 0; first < size && !abandoned; first += kSumBlock) {
    const int64_t count = std::min(kSumBlock, size - first);
    std::copy_n(elements<const T>(inputs[0], first), count, sum);
    for (const Tensor& input : inputs.subspan(1)) {
      const T* values = elements<const T>(input, first);
      for (int64_t i = 0; i < count; ++i) sum[i] += values[i];
    }
    for (const Tensor& output : outputs) std::copy_n(sum, count, elements<T>(output, first));
  }
}

class HostRankMemory final : public RankMemory {
 public:
  void copy(const Tensor& from, const Tensor& to, const std::atomic<bool>& abandoned) override {
    if (from.data == to.data) return;
    for (int64_t first = 0; first < from.bytes() && !abandoned; first += kCopyBlock) {
      const int64_t count = std::min(kCopyBlock, from.bytes() - first);
      std::memcpy(to.data + first, from.data + first, static_cast<size_t>(count));
    }
  }

  void sum(std::span<const Tensor> inputs, std::span<const Tensor> outputs,
           const std::atomic<bool>& abandoned) override {
    if (inputs[0].dtype == Dtype::f64) sum_elements<double>(inputs, outputs, abandoned);
    else sum_elements<float>(inputs, outputs, abandoned);
  }
};

}  // namespace

std::unique_ptr<RankMemory> make_host_memory() { return std::make_unique<HostRankMemory>(); }

}  // namespace ringlet
