#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "kernels/backend.h"

namespace ringlet {

/// f32 numbers on their way to a file: on the host, or on a device, which are read block by block, so that saving needs
/// no second copy of them. Borrows the values and the device: both must outlive this, the values unchanged.
class SavedValues {
 public:
  SavedValues() = default;
  SavedValues(std::span<const float> on_host) : on_host_(on_host) {}
  SavedValues(std::vector<float>&&) = delete;
  SavedValues(const std::vector<float>& on_host) : on_host_(on_host) {}
  SavedValues(Backend& device, const Tensor& tensor)
      : device_(&device), tensor_(tensor.reshaped({tensor.size(), 1, 1, 1})) {}

  int64_t size() const { return device_ != nullptr ? tensor_.size() : std::ssize(on_host_); }

  /// In order; a block is gone when `each` returns.
  void visit(const std::function<void(std::span<const float>)>& each) const {
    if (device_ == nullptr) return each(on_host_);
    std::vector<float> block(size_t(std::min(kBlock, size())));
    for (int64_t first = 0; first < size(); first += kBlock) {
      const auto count = std::min(kBlock, size() - first);
      const std::span<float> values = std::span(block).first(size_t(count));
      read<float>(*device_, tensor_.slice(first, count), values);
      each(values);
    }
  }

 private:
  static constexpr int64_t kBlock = int64_t{1} << 18;
  std::span<const float> on_host_;
  Backend* device_ = nullptr;
  Tensor tensor_;
};

}  // namespace ringlet
