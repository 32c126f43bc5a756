#include "kernels/comm/dry.h"

#include <utility>

#include "kernels/comm/arguments.h"

namespace ringlet {

DryComm::DryComm(DryPlace place, std::vector<DryPlace> splits, DryTraffic& traffic)
    : place_(place), splits_(std::move(splits)), traffic_(traffic) {
  CHECK(place.rank >= 0 && place.rank < place.size, "rank ", place.rank, " of ", place.size);
}

Event DryComm::exchange(std::span<const Message> sends, std::span<const Message> receives, Event) {
  check_messages(sends, size());
  check_messages(receives, size());
  bool any = false;
  for (const Message& message : receives) any = any || message.tensor.size() > 0;
  for (const Message& message : sends) {
    any = any || message.tensor.size() > 0;
    traffic_.exchange_bytes += message.tensor.bytes();
  }
  traffic_.exchanges += any ? 1 : 0;
  return next_event();
}

Event DryComm::all_reduce(const Tensor& values, Event) {
  check_sum(values);
  traffic_.all_reduce_bytes += 2 * values.bytes() * (size() - 1) / size();
  return next_event();
}

Event DryComm::reduce_scatter(const Tensor& values, const Tensor& shard, Event) {
  check_sum(values);
  check_shards(values, shard, size());
  traffic_.reduce_scatter_bytes += shard.bytes() * (size() - 1);
  return next_event();
}

Event DryComm::all_gather(const Tensor& shard, const Tensor& values, Event) {
  check_shards(values, shard, size());
  traffic_.all_gather_bytes += shard.bytes() * (size() - 1);
  return next_event();
}

Event DryComm::broadcast(const Tensor& values, int root, Event) {
  check_values(values);
  check_root(root, size());
  if (root == rank()) traffic_.broadcast_bytes += values.bytes() * (size() - 1);
  return next_event();
}

std::unique_ptr<Comm> DryComm::split(int) {
  CHECK(splits_used_ < splits_.size(), "split number ", splits_used_ + 1, " of a dry world with ",
        splits_.size());
  return std::make_unique<DryComm>(splits_[splits_used_++], std::vector<DryPlace>{}, traffic_);
}

}  // namespace ringlet
