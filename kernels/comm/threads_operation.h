#pragma once

#include <atomic>
#include <cstdint>
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
};

/// Parts that belong together: of a message its sender and its receiver, of a collective every rank
/// in rank order.
struct Operation {
  Kind kind = Kind::message;
  std::vector<Part> parts;
};

/// Throws Error that names two ranks and their sizes when the parts do not fit together.
void check_parts(const Operation& operation);

/// Moves and sums the data. Gives up between two blocks once `abandoned` is true.
void perform(const Operation& operation, RankMemory& memory, const std::atomic<bool>& abandoned);

}  // namespace ringlet::threads
