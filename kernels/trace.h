#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>

namespace ringlet {

/// Where a rank is in its work, and how long it has waited for others. Written by the rank's own
/// thread, read by any (the watchdog names a stuck rank from it).
class Trace {
 public:
  struct Place {
    int64_t step = 0;
    int layer = -1, hop = -1;  // -1: not in a layer, not on the ring
    const char* phase = "start";  // a literal: "forward", "backward", "optimizer", ...
  };

  void enter_step(int64_t step, const char* phase) { step_ = step; phase_ = phase; layer_ = hop_ = -1; }
  void enter_phase(const char* phase) { phase_ = phase; layer_ = hop_ = -1; }
  void enter_layer(int layer) { layer_ = layer; hop_ = -1; }
  void enter_hop(int hop) { hop_ = hop; }
  Place place() const { return {step_, layer_, hop_, phase_}; }

  /// Time that the rank's compute queue stood still, waiting for messages.
  std::chrono::nanoseconds exposed_wait() const { return std::chrono::nanoseconds(exposed_ns_); }
  void add_exposed_wait(std::chrono::nanoseconds time) { exposed_ns_ += time.count(); }

  /// Is the rank's thread asleep in a wait for a message? (Whoever is not is the one waited for.)
  bool waiting() const { return waiting_; }
  void set_waiting(bool waiting) { waiting_ = waiting; }

 private:
  std::atomic<int64_t> step_{0}, exposed_ns_{0};
  std::atomic<int> layer_{-1}, hop_{-1};
  std::atomic<const char*> phase_{"start"};
  std::atomic<bool> waiting_{false};
};

}  // namespace ringlet
