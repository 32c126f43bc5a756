#pragma once

#include <chrono>
#include <cstdint>

#include "kernels/event.h"

namespace ringlet {

/// Who wants to know when what was asked of a Comm really travels.
class TransferObserver {
 public:
  using Time = std::chrono::steady_clock::time_point;
  enum class Direction : uint8_t { out, in, both };  // both: a collective

  virtual ~TransferObserver() = default;
  /// Data of the operation of one rank whose Event this is moved from begin to end; of an exchange each message
  /// is told on its own, where they can be told apart. Messages that are copied in one call share begin and end.
  /// Comes before the event is reached, by one thread at a time.
  virtual void on_transfer(Event event, Direction direction, Time begin, Time end) = 0;
};

}  // namespace ringlet
