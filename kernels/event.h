#pragma once

#include <cstdint>

namespace ringlet {

/// The progress of one queue of work, counted. Implemented by each device and each Comm.
class Timeline {
 public:
  virtual ~Timeline() = default;
  /// Has the queue come to `value`? Any thread, never blocks.
  virtual bool reached(int64_t value) const = 0;
  /// The calling host thread sleeps until the queue has come to `value`. Throws Error when that
  /// can no longer happen (a peer failed, or did not answer in time).
  virtual void wait(int64_t value) = 0;
  /// Does who waits for it wait for other ranks? (Trace::exposed_wait counts that.)
  virtual bool is_of_ranks() const { return true; }
};

/// A point in a queue's work, as a small value. The default one has always been reached.
struct Event {
  Timeline* timeline = nullptr;
  int64_t value = 0;
  bool reached() const { return timeline == nullptr || timeline->reached(value); }
  void wait() const { if (timeline != nullptr) timeline->wait(value); }
};

}  // namespace ringlet
