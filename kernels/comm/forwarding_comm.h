#pragma once

#include <memory>
#include <utility>

#include "kernels/comm.h"

namespace ringlet {

/// A Comm that passes every call on to another one: who watches or changes a call overrides it. What split() gives
/// is the inner one's.
class ForwardingComm : public Comm {
 public:
  /// `inner` must outlive this.
  explicit ForwardingComm(Comm& inner) : inner_(inner) {}
  explicit ForwardingComm(std::unique_ptr<Comm> inner) : owned_(std::move(inner)), inner_(*owned_) {}

  int rank() const override { return inner_.rank(); }
  int size() const override { return inner_.size(); }
  Event exchange(std::span<const Message> sends, std::span<const Message> receives,
                 Event after) override {
    return inner_.exchange(sends, receives, after);
  }
  Event all_reduce(const Tensor& values, Event after) override {
    return inner_.all_reduce(values, after);
  }
  Event reduce_scatter(const Tensor& values, const Tensor& shard, Event after) override {
    return inner_.reduce_scatter(values, shard, after);
  }
  Event all_gather(const Tensor& shard, const Tensor& values, Event after) override {
    return inner_.all_gather(shard, values, after);
  }
  Event broadcast(const Tensor& values, int root, Event after) override {
    return inner_.broadcast(values, root, after);
  }
  void barrier() override { inner_.barrier(); }
  std::unique_ptr<Comm> split(int color) override { return inner_.split(color); }

 private:
  std::unique_ptr<Comm> owned_;  // or absent
  Comm& inner_;
};

}  // namespace ringlet
