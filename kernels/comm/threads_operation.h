#pragma once

#include <atomic>
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/comm/rank_memory.h"
#include "kernels/event.h"
#include "kernels/tensor.h"

namespace ringlet::threads {

class RankTimeline;

enum class Kind : uint8_t { message, all_reduce, reduce_scatter, all_gather, broadcast, barrier };

const char* name_of(Kind kind);

/// What one rank gives to an operation.
struct Part {
  Tensor input, output;  // may share memory as comm.h allows; a message's part has one of them
  Event after;
  int64_t root = 0;  // of a broadcast
  int world_rank = 0;
  RankTimeline* timeline = nullptr;  // told when the operation is done; null: not yet posted
  int64_t value = 0;
  bool is_posted() const { return timeline != nullptr; }
};

/// A part on its way from its rank to the progress thread.
struct Post {
  Kind kind = Kind::message;
  Part part;
  int64_t number = 0;   // of a message the other rank of the group, of a collective the group's call, from 0
  int event_parts = 1;  // posts of this event: of an exchange as many as messages
};

/// Parts that belong together: of a message its sender and its receiver, of a collective every rank
/// in rank order.
struct Operation {
  Kind kind = Kind::message;
  std::vector<Part> parts;
};

/// Throws Error that names two ranks and their sizes when the parts do not fit together.
void check_parts(const Operation& operation);

/// Moves and sums the data of operations, one at a time. Keeps what it needs for that from one to the next.
class Performer {
 public:
  explicit Performer(RankMemory& memory) : memory_(memory) {}
  /// Gives up between two blocks once `abandoned` is true.
  void perform(Kind kind, std::span<const Part> parts, const std::atomic<bool>& abandoned);

 private:
  void all_reduce(std::span<const Part> parts, const std::atomic<bool>& abandoned);
  void reduce_scatter(std::span<const Part> parts, const std::atomic<bool>& abandoned);
  void all_gather(std::span<const Part> parts, const std::atomic<bool>& abandoned);
  void broadcast(std::span<const Part> parts, const std::atomic<bool>& abandoned);

  RankMemory& memory_;
  std::vector<Tensor> inputs_, outputs_;
};

}  // namespace ringlet::threads
