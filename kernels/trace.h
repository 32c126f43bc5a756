#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>

namespace ringlet {

/// Where a rank is in its work, when it was last seen to move, and how long it has waited for others.
/// Written by the rank's own threads, read by any (the watchdog names a stuck rank from it).
class Trace {
 public:
  struct Place {
    int64_t step = 0;
    int layer = -1, hop = -1;  // -1: not in a layer, not on the ring
    const char* phase = "start";  // a literal: "forward", "backward", "optimizer", ...
  };

  // Each of these is a sign of life as well.
  void enter_step(int64_t step, const char* phase) { step_ = step; enter_phase(phase); }
  void enter_phase(const char* phase) { phase_ = phase; enter_layer(-1); }
  void enter_layer(int layer) { layer_ = layer; enter_hop(-1); }
  void enter_hop(int hop) { hop_ = hop; sign_of_life(); }
  Place place() const { return {step_, layer_, hop_, phase_}; }

  using Clock = std::chrono::steady_clock;
  /// The rank gets on with work that has no place of its own: a block of a checkpoint was written, ...
  void sign_of_life() {
    const Clock::duration now = Clock::now().time_since_epoch();
    Clock::duration last = last_sign_;  // of another thread that read the clock later, and came here before this one
    while (last < now && !last_sign_.compare_exchange_weak(last, now)) {}
  }
  Clock::time_point last_sign() const { return Clock::time_point(last_sign_); }

  /// Time that the rank's compute queue stood still, waiting for messages.
  std::chrono::nanoseconds exposed_wait() const { return std::chrono::nanoseconds(exposed_ns_); }
  void add_exposed_wait(std::chrono::nanoseconds time) { exposed_ns_ += time.count(); }

  /// Of an emulated link (0 without one): time that waits would have taken had the peers of each message asked for it in
  /// the moment in which this rank did. What exposed_wait() has beyond that are slower peers.
  std::chrono::nanoseconds link_wait() const { return std::chrono::nanoseconds(link_ns_); }
  void add_link_wait(std::chrono::nanoseconds time) { link_ns_ += time.count(); }

  /// Is a thread of the rank in a wait for a message? (Who is not is the one waited for.)
  bool waiting() const { return waits_ > 0; }
  // The sign comes first: who looks in between must not find an old one beside the new state.
  void begin_wait() { sign_of_life(); ++waits_; }
  void end_wait() { sign_of_life(); --waits_; }

 private:
  std::atomic<int64_t> step_{0}, exposed_ns_{0}, link_ns_{0};
  std::atomic<int> layer_{-1}, hop_{-1}, waits_{0};
  std::atomic<const char*> phase_{"start"};
  std::atomic<Clock::duration> last_sign_{Clock::now().time_since_epoch()};
};

}  // namespace ringlet
