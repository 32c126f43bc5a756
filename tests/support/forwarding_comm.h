#pragma once

#include <memory>
#include <utility>

#include "kernels/comm.h"

namespace ringlet::test {

/// A Comm that passes every call on to another one: who changes a call overrides it.
class ForwardingComm : public Comm {
 public:
  explicit ForwardingComm(std::unique_ptr<Comm> inner) : inner_(std::move(inner)) {}

  int rank() const override { return inner_->rank(); }
  int size() const override { return inner_->size(); }
  Event exchange(std::span<const Message> sends, std::span<const Message> receives,
                 Event after) override {
    return inner_->exchange(sends, receives, after);
  }
  Event all_reduce(const Tensor& values, Event after) override {
    return inner_->all_reduce(values, after);
  }
  Event reduce_scatter(const Tensor& values, const Tensor& shard, Event after) override {
    return inner_->reduce_scatter(values, shard, after);
  }
  Event all_gather(const Tensor& shard, const Tensor& values, Event after) override {
    return inner_->all_gather(shard, values, after);
  }
  Event broadcast(const Tensor& values, int root, Event after) override {
    return inner_->broadcast(values, root, after);
  }
  void barrier() override { inner_->barrier(); }
  std::unique_ptr<Comm> split(int color) override { return inner_->split(color); }

 private:
  std::unique_ptr<Comm> inner_;
};

}  // namespace ringlet::test
