#pragma once

#include <cstddef>
#include <span>

#include "kernels/comm.h"

namespace ringlet {

/// One communicator of a message library and the queue on which its calls run, in their order, each when its
/// peers have come to theirs. Tensors are contiguous and not empty.
class MessageQueue {
 public:
  virtual ~MessageQueue() = default;
  /// Sends and receives between start_group and end_group travel together; nothing else stands there.
  virtual void start_group() = 0;
  virtual void end_group() = 0;
  virtual void send(const Tensor& tensor, int peer) = 0;
  virtual void receive(const Tensor& tensor, int peer) = 0;
  /// As in Comm.
  virtual void all_gather(const Tensor& shard, const Tensor& values) = 0;
  /// output = (input 0 + input 1) + ..., at most kMostInputs of them; the output may be an input. Local.
  virtual void sum(std::span<const Tensor> inputs, const Tensor& output) = 0;

  static constexpr size_t kMostInputs = 64;
};

/// Operations of Comm made of the calls of a MessageQueue, for libraries whose own sums are not in rank order
/// (NCCL's order depends on channels and rings, and so do its bits). Large tensors send the bytes of a ring's
/// algorithms (Traffic).
class RankOrder {
 public:
  /// scratch: memory of the queue's device, 16-byte aligned, at least size * 64 bytes; more makes fewer and
  /// larger messages. Used on the queue alone. Both must outlive this.
  RankOrder(MessageQueue& queue, int rank, int size, std::span<std::byte> scratch);

  /// One group; empty tensors are left out. No call at all where nothing is left.
  void exchange(std::span<const Message> sends, std::span<const Message> receives);
  /// Small tensors are gathered and summed by every rank; of large ones each rank sums its part, which is then
  /// gathered.
  void all_reduce(const Tensor& values);
  /// Each rank gets what the others have for its shard, block by block, and sums it.
  void reduce_scatter(const Tensor& values, const Tensor& shard);

 private:
  Tensor scratch_row(const Tensor& like, int row, int64_t block) const;
  int64_t block_size(const Tensor& like) const;
  void reduce_gathered(const Tensor& values);
  void sum(std::span<const Tensor> inputs, const Tensor& output);

  MessageQueue& queue_;
  const int rank_, size_;
  const std::span<std::byte> scratch_;
};

}  // namespace ringlet
