#include "kernels/comm/threads_comm.h"

#include <exception>

#include "kernels/comm/arguments.h"

namespace ringlet::threads {

ThreadsComm::ThreadsComm(World& world, Group& group, int rank)
    : world_(world),
      group_(group),
      timeline_(*group.timelines[static_cast<size_t>(rank)]),
      rank_(rank),
      performer_(world.memory()) {}

ThreadsComm::~ThreadsComm() {
  try {
    if (std::uncaught_exceptions() == 0) timeline_.wait(timeline_.posted);
  } catch (const Error&) {
    // The world has failed: run_ranks tells why.
  }
  world_.withdraw(timeline_);
}

Event ThreadsComm::exchange(std::span<const Message> sends, std::span<const Message> receives,
                            Event after) {
  check_messages(sends, size());
  check_messages(receives, size());
  return world_.start_exchange(timeline_, sends, receives, after);
}

Event ThreadsComm::all_reduce(const Tensor& values, Event after) {
  check_sum(values);
  return start(Kind::all_reduce, values, values, after);
}

Event ThreadsComm::reduce_scatter(const Tensor& values, const Tensor& shard, Event after) {
  check_sum(values);
  check_shards(values, shard, size());
  return start(Kind::reduce_scatter, values, shard, after);
}

Event ThreadsComm::all_gather(const Tensor& shard, const Tensor& values, Event after) {
  check_shards(values, shard, size());
  return start(Kind::all_gather, shard, values, after);
}

Event ThreadsComm::broadcast(const Tensor& values, int root, Event after) {
  check_values(values);
  check_root(root, size());
  return start(Kind::broadcast, values, values, after, root);
}

void ThreadsComm::barrier() { start(Kind::barrier, {}, {}, {}).wait(); }

std::unique_ptr<Comm> ThreadsComm::split(int color) {
  int64_t own_color = color;
  std::vector<int64_t> colors(group_.members.size());
  const auto tensor = [](int64_t* values, int64_t count) {
    return make_tensor(reinterpret_cast<std::byte*>(values), Dtype::i64, {count, 1, 1, 1});
  };
  all_gather(tensor(&own_color, 1), tensor(colors.data(), size()), {}).wait();

  std::vector<int> members;
  int new_rank = 0;
  for (size_t rank = 0; rank < colors.size(); ++rank) {
    if (colors[rank] != color) continue;
    if (static_cast<int>(rank) == rank_) new_rank = static_cast<int>(members.size());
    members.push_back(group_.members[rank]);
  }
  Group& group = world_.subgroup(group_, split_count_++, color, members);
  return std::make_unique<ThreadsComm>(world_, group, new_rank);
}

Event ThreadsComm::start(Kind kind, const Tensor& input, const Tensor& output, Event after,
                         int root) {
  Part part;
  part.input = input;
  part.output = output;
  part.after = after;
  part.root = root;
  const bool alone = size() == 1 && !world_.failed() && timeline_.reached(timeline_.posted);
  // Its own part in its own place: nothing to do, and nothing that a GPU's queue would have to be waited for.
  if (alone && input.data == output.data) return after;
  if (alone && after.reached()) {
    // Nobody to wait for: no need to wake the progress thread.
    performer_.perform(kind, {&part, 1}, std::atomic<bool>(false));
    return {};
  }
  return world_.start_collective(timeline_, kind, part);
}

}  // namespace ringlet::threads
