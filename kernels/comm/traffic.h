#pragma once

#include "kernels/comm/forwarding_comm.h"

namespace ringlet {

/// Bytes that one rank sends, as the ring algorithms of the collectives do it: all_reduce
/// 2 (R - 1) / R of its values, reduce_scatter (R - 1) / R, all_gather R - 1 times its shard;
/// a broadcast once to each other rank, from the root.
struct Traffic {
  int64_t exchange_bytes = 0;
  int64_t all_reduce_bytes = 0;
  int64_t reduce_scatter_bytes = 0;
  int64_t all_gather_bytes = 0;
  int64_t broadcast_bytes = 0;
  int64_t exchanges = 0;  // those in which anything was sent or received

  int64_t bytes() const {
    return exchange_bytes + all_reduce_bytes + reduce_scatter_bytes + all_gather_bytes + broadcast_bytes;
  }
  static int64_t of_all_reduce(const Tensor& values, int size) { return 2 * values.bytes() * (size - 1) / size; }
  /// reduce_scatter, all_gather.
  static int64_t of_shards(const Tensor& shard, int size) { return shard.bytes() * (size - 1); }

  void count_exchange(std::span<const Message> sends, std::span<const Message> receives) {
    bool any = false;
    for (const Message& message : receives) any = any || message.tensor.size() > 0;
    for (const Message& message : sends) {
      any = any || message.tensor.size() > 0;
      exchange_bytes += message.tensor.bytes();
    }
    exchanges += any ? 1 : 0;
  }
  void count_all_reduce(const Tensor& values, int size) {
    all_reduce_bytes += of_all_reduce(values, size);
  }
  void count_reduce_scatter(const Tensor& shard, int size) {
    reduce_scatter_bytes += of_shards(shard, size);
  }
  void count_all_gather(const Tensor& shard, int size) { all_gather_bytes += of_shards(shard, size); }
  void count_broadcast(const Tensor& values, int size, bool is_root) {
    if (is_root) broadcast_bytes += values.bytes() * (size - 1);
  }
};

/// Counts what goes through a Comm.
class CountingComm final : public ForwardingComm {
 public:
  /// Both must outlive this.
  CountingComm(Comm& inner, Traffic& traffic) : ForwardingComm(inner), traffic_(traffic) {}

  Event exchange(std::span<const Message> sends, std::span<const Message> receives,
                 Event after) override {
    traffic_.count_exchange(sends, receives);
    return ForwardingComm::exchange(sends, receives, after);
  }
  Event all_reduce(const Tensor& values, Event after) override {
    traffic_.count_all_reduce(values, size());
    return ForwardingComm::all_reduce(values, after);
  }
  Event reduce_scatter(const Tensor& values, const Tensor& shard, Event after) override {
    traffic_.count_reduce_scatter(shard, size());
    return ForwardingComm::reduce_scatter(values, shard, after);
  }
  Event all_gather(const Tensor& shard, const Tensor& values, Event after) override {
    traffic_.count_all_gather(shard, size());
    return ForwardingComm::all_gather(shard, values, after);
  }
  Event broadcast(const Tensor& values, int root, Event after) override {
    traffic_.count_broadcast(values, size(), root == rank());
    return ForwardingComm::broadcast(values, root, after);
  }

 private:
  Traffic& traffic_;
};

}  // namespace ringlet
