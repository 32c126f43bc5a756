#pragma once

#include "kernels/comm/traffic.h"

namespace ringlet {

/// Which rank of how many.
struct DryPlace {
  int rank = 0, size = 1;
};

/// One rank of a world, alone: sends nothing, counts what it would send. Never touches a tensor's
/// data; every operation is done when its call returns, but its Event has a place on a timeline, so that
/// an Arena sees who forgets to wait for it. Arguments are checked as elsewhere.
class DryComm : public Comm {
 public:
  /// `traffic` is added to and must outlive this.
  DryComm(DryPlace place, Traffic& traffic);

  int rank() const override { return place_.rank; }
  int size() const override { return place_.size; }
  Event exchange(std::span<const Message> sends, std::span<const Message> receives,
                 Event after) override;
  Event all_reduce(const Tensor& values, Event after) override;
  Event reduce_scatter(const Tensor& values, const Tensor& shard, Event after) override;
  Event all_gather(const Tensor& shard, const Tensor& values, Event after) override;
  Event broadcast(const Tensor& values, int root, Event after) override;
  void barrier() override {}
  /// Throws Error: the rings of a dry world are made as it is.
  std::unique_ptr<Comm> split(int color) override;

 private:
  class Done : public Timeline {
   public:
    bool reached(int64_t) const override { return true; }
    void wait(int64_t) override {}
  };
  Event next_event() { return {&done_, ++operations_}; }

  DryPlace place_;
  Done done_;
  int64_t operations_ = 0;
  Traffic& traffic_;
};

}  // namespace ringlet
