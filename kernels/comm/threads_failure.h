#pragma once

#include <chrono>
#include <exception>
#include <string>
#include <vector>

#include "kernels/check.h"
#include "kernels/trace.h"

namespace ringlet::threads {

/// The first thing that went wrong in a world: the error as run_ranks throws it, and its words for
/// the other ranks.
struct Failure {
  std::exception_ptr error;
  std::string cause, advice;
  bool of_a_peer = false;  // a PeerFailed: the rank that it speaks of has the better message
};

Failure make_failure(const std::string& cause, const std::string& advice = {});

/// `error` with `prefix` before its message. Error and UsageError stay what they are, all else
/// becomes an Error.
Failure describe_failure(std::exception_ptr error, const std::string& prefix);

/// A rank as the watchdog sees it.
struct RankView {
  int rank;
  bool waiting, ended;
  Trace::Place place;
  Trace::Clock::time_point last_sign;
};

/// "step 3, backward, layer 1, hop 2"
std::string describe_place(const Trace::Place& place);

/// When the first of those who should be working will have given no sign of life for `timeout`. If all ranks
/// wait: when the last of them will have waited so long.
Trace::Clock::time_point end_of_patience(const std::vector<RankView>& ranks,
                                         std::chrono::milliseconds timeout);

/// Who has not answered `waiter` for so long: whoever is not waiting and gave no sign of life. If all wait: a
/// deadlock.
Failure timeout_failure(const std::vector<RankView>& ranks, int waiter,
                        std::chrono::milliseconds timeout);

}  // namespace ringlet::threads
