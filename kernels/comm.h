#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "kernels/event.h"
#include "kernels/tensor.h"

namespace ringlet {

/// One tensor on its way to or from a peer (a rank of the same Comm).
struct Message {
  int peer;
  Tensor tensor;  // contiguous, any dtype
};

/// What a rank says to the other ranks of its group. All operations are asynchronous and follow these rules:
/// - an operation starts when `after` has been reached on this rank, and every peer's on theirs;
/// - the returned Event is reached when this rank's part is done: received data can be read, sent data
///   overwritten. Until then its tensors are in flight and belong to the Comm (Arena::hold);
/// - a Comm's events are reached in the order in which its operations were started (on a Comm of one rank an operation in
///   place may return `after` itself);
/// - collectives are called by all ranks in the same order; messages between two ranks match in order;
/// - sums are taken in rank order, so that equal inputs give equal bits, on every rank;
/// - when a rank fails or does not answer in time, waiting throws Error (PeerFailed where another rank's
///   message says more).
/// One thread per rank calls a Comm.
class Comm {
 public:
  virtual ~Comm() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;

  /// A group of sends and receives that travel together: one hop. Empty tensors are not sent, on either side.
  virtual Event exchange(std::span<const Message> sends, std::span<const Message> receives,
                         Event after) = 0;

  /// values: f32 or f64 [n]; afterwards every rank holds the sum.
  virtual Event all_reduce(const Tensor& values, Event after) = 0;

  /// values: f32 [size() * n]; `shard`: f32 [n] gets this rank's n of the sum. `shard` may be
  /// this rank's own part of `values`; the rest of `values` is left as it was.
  virtual Event reduce_scatter(const Tensor& values, const Tensor& shard, Event after) = 0;

  /// shard: [n]; values: [size() * n] gets every rank's shard, in rank order. `shard` may be this rank's own
  /// part of `values`.
  virtual Event all_gather(const Tensor& shard, const Tensor& values, Event after) = 0;

  /// values: the root's are copied to every rank.
  virtual Event broadcast(const Tensor& values, int root, Event after) = 0;

  /// Returns when every rank has called it. The only operation that waits.
  virtual void barrier() = 0;

  /// The ranks that give the same color form a new Comm, in the order of their ranks here. Collective; waits.
  virtual std::unique_ptr<Comm> split(int color) = 0;
};

}  // namespace ringlet
