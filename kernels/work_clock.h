#pragma once

#include <chrono>
#include <vector>

namespace ringlet {

/// When an asynchronous device did what it was asked to do.
class WorkClock {
 public:
  using Time = std::chrono::steady_clock::time_point;
  struct Stretch {
    Time begin, end;
  };
  virtual ~WorkClock() = default;
  /// What is asked of the device between these two calls is one stretch of work; where the device has nothing to do, it
  /// begins with the asking. Does not stop the host. name: of a range that the device's own profilers show.
  virtual void begin(const char* name) = 0;
  virtual void end() = 0;
  /// The stretches since the last call, in order, to some microseconds. Waits for the device.
  virtual std::vector<Stretch> take() = 0;
};

}  // namespace ringlet
