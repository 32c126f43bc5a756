#pragma once

#include <atomic>
#include <memory>
#include <span>

#include "kernels/tensor.h"

namespace ringlet {

/// Moves and sums tensors of ranks that are threads of one process. Any thread may call it; every call
/// returns when it is done, or soon after `abandoned` became true. Tensors are contiguous.
class RankMemory {
 public:
  virtual ~RankMemory() = default;
  /// Same number of bytes, any dtype; nothing happens when both are the same memory.
  virtual void copy(const Tensor& from, const Tensor& to, const std::atomic<bool>& abandoned) = 0;

  struct Copy {
    Tensor from, to;
  };
  /// How many copies that may start should be handed over in one call: more than one where each call waits for
  /// a device, which would leave it idle between them.
  virtual int copies_at_once() const { return 1; }
  /// As `copy`, of any number of copies that do not depend on each other.
  virtual void copy_all(std::span<const Copy> copies, const std::atomic<bool>& abandoned) {
    for (const Copy& each : copies) copy(each.from, each.to, abandoned);
  }
  /// Each output = (input 0 + input 1) + input 2 ..., f32 or f64, all of the same size. An output may be
  /// an input, or the same part of its rank's memory.
  virtual void sum(std::span<const Tensor> inputs, std::span<const Tensor> outputs,
                   const std::atomic<bool>& abandoned) = 0;
};

/// Tensors in the host's memory.
std::unique_ptr<RankMemory> make_host_memory();

}  // namespace ringlet
