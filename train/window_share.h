#pragma once

#include <cstdint>

namespace ringlet {

/// Which windows of the global order a ring of the world trains: a step is `batch_windows` windows, window i of it
/// goes to ring i % rings. Shares may be uneven, even empty; only sums travel.
struct WindowShare {
  int64_t batch_windows = 1;
  int64_t rings = 1, ring = 0;

  int64_t per_step() const {
    return ring < batch_windows ? (batch_windows - ring + rings - 1) / rings : 0;
  }
  /// Windows a step of the ring that has the most.
  int64_t most_per_step() const { return (batch_windows + rings - 1) / rings; }
  /// Global cursor of this ring's k-th window, when the first step began at `first_cursor`. Needs per_step() > 0.
  int64_t cursor(int64_t k, int64_t first_cursor) const {
    return first_cursor + k / per_step() * batch_windows + ring + k % per_step() * rings;
  }
};

}  // namespace ringlet
