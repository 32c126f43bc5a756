#pragma once

#include <bit>
#include <memory>
#include <string_view>

#include "kernels/forwarding_backend.h"
#include "tests/support/defects.h"

namespace ringlet::test {

/// A rank's device with something wrong. On the CPU: a call is done when it returns.
class WrongDevice : public ForwardingBackend {
 public:
  WrongDevice(std::unique_ptr<Backend> inner, const Trace& trace, int rank)
      : ForwardingBackend(std::move(inner)), trace_(trace), rank_(rank) {}

 protected:
  int hop() const { return trace_.place().hop; }
  std::string_view phase() const { return trace_.place().phase; }
  int rank() const { return rank_; }
  Tensor scratch(Dtype dtype, Shape shape) { return arena().allocate("defect", dtype, shape); }

 private:
  const Trace& trace_;
  const int rank_;
};

template <class Device>
RingParts with_device() {
  RingParts parts = real_parts();
  parts.device = [make = parts.device](int rank, int64_t arena_bytes, Trace& trace) {
    return std::make_unique<Device>(make(rank, arena_bytes, trace), trace, rank);
  };
  return parts;
}

inline void round_to_bf16(const Tensor& tensor) {
  for (float& value : tensor.as<float>()) {
    const auto bits = std::bit_cast<uint32_t>(value);
    value = std::bit_cast<float>((bits + 0x7fffu + (bits >> 16 & 1u)) & 0xffff0000u);
  }
}

}  // namespace ringlet::test
