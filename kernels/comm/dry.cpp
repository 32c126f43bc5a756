#include "kernels/comm/dry.h"

#include <utility>

#include "kernels/comm/arguments.h"

namespace ringlet {

DryComm::DryComm(DryPlace place, Traffic& traffic) : place_(place), traffic_(traffic) {
  CHECK(place.rank >= 0 && place.rank < place.size, "rank ", place.rank, " of ", place.size);
}

Event DryComm::exchange(std::span<const Message> sends, std::span<const Message> receives, Event) {
  check_messages(sends, size());
  check_messages(receives, size());
  traffic_.count_exchange(sends, receives);
  return next_event();
}

Event DryComm::all_reduce(const Tensor& values, Event) {
  check_sum(values);
  traffic_.count_all_reduce(values, size());
  return next_event();
}

Event DryComm::reduce_scatter(const Tensor& values, const Tensor& shard, Event) {
  check_sum(values);
  check_shards(values, shard, size());
  traffic_.count_reduce_scatter(shard, size());
  return next_event();
}

Event DryComm::all_gather(const Tensor& shard, const Tensor& values, Event) {
  check_shards(values, shard, size());
  traffic_.count_all_gather(shard, size());
  return next_event();
}

Event DryComm::broadcast(const Tensor& values, int root, Event) {
  check_values(values);
  check_root(root, size());
  traffic_.count_broadcast(values, size(), root == rank());
  return next_event();
}

std::unique_ptr<Comm> DryComm::split(int) { throw Error("a dry world is not split"); }

}  // namespace ringlet
