#pragma once

#include <chrono>
#include <functional>
#include <limits>

#include "kernels/comm/threads.h"

namespace ringlet::test {

/// What no message may leave behind.
constexpr float kPoison = std::numeric_limits<float>::quiet_NaN();

/// Ranks as threads that do nothing but talk.
inline void run(int ranks, const std::function<void(Comm&)>& main) {
  run_ranks({ranks, std::chrono::seconds(20)}, [&](Comm& world, Trace&) { main(world); });
}

}  // namespace ringlet::test
