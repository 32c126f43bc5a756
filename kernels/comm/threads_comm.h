#pragma once

#include <memory>

#include "kernels/comm.h"
#include "kernels/comm/threads_world.h"

namespace ringlet::threads {

/// One rank's end of a group. When it is destroyed it waits for what it has in flight, or, while an
/// exception is on its way, gives it up: memory that is declared before a Comm outlives its
/// messages.
class ThreadsComm : public Comm {
 public:
  ThreadsComm(World& world, Group& group, int rank);
  ~ThreadsComm() override;
  ThreadsComm(const ThreadsComm&) = delete;
  ThreadsComm& operator=(const ThreadsComm&) = delete;

  int rank() const override { return rank_; }
  int size() const override { return static_cast<int>(group_.members.size()); }
  Event exchange(std::span<const Message> sends, std::span<const Message> receives,
                 Event after) override;
  Event all_reduce(const Tensor& values, Event after) override;
  Event reduce_scatter(const Tensor& values, const Tensor& shard, Event after) override;
  Event all_gather(const Tensor& shard, const Tensor& values, Event after) override;
  Event broadcast(const Tensor& values, int root, Event after) override;
  void barrier() override;
  std::unique_ptr<Comm> split(int color) override;

 private:
  Event start(Kind kind, const Tensor& input, const Tensor& output, Event after, int root = 0);

  World& world_;
  Group& group_;
  RankTimeline& timeline_;
  const int rank_;
  int64_t split_count_ = 0;
  Performer performer_;  // of collectives on a group of one
};

}  // namespace ringlet::threads
