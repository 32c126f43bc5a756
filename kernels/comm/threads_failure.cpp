#include "kernels/comm/threads_failure.h"

#include <algorithm>
#include <new>

#include <fmt/format.h>

namespace ringlet::threads {
namespace {

template <class Type>
Failure failure_as(const std::string& cause, const std::string& advice) {
  return {std::make_exception_ptr(Type(cause, advice)), cause, advice, false};
}

std::string describe_rank(const RankView& rank) {
  return fmt::format("rank {} ({})", rank.rank, describe_place(rank.place));
}

}  // namespace

Failure make_failure(const std::string& cause, const std::string& advice) {
  return failure_as<Error>(cause, advice);
}

Failure describe_failure(std::exception_ptr error, const std::string& prefix) {
  try {
    std::rethrow_exception(error);
  } catch (const UsageError& usage) {
    return failure_as<UsageError>(prefix + usage.what(), usage.advice);
  } catch (const PeerFailed& peer) {
    Failure failure = failure_as<Error>(prefix + peer.what(), peer.advice);
    failure.of_a_peer = true;
    return failure;
  } catch (const Error& other) {
    return failure_as<Error>(prefix + other.what(), other.advice);
  } catch (const std::bad_alloc&) {
    return make_failure(prefix + "out of host memory",
                        "Free some memory, or use a smaller model or a shorter sequence.");
  } catch (const std::exception& other) {
    return make_failure(prefix + other.what());
  } catch (...) {
    return make_failure(prefix + "an exception of unknown type");
  }
}

std::string describe_place(const Trace::Place& place) {
  std::string text = fmt::format("step {}, {}", place.step, place.phase);
  if (place.layer >= 0) text += fmt::format(", layer {}", place.layer);
  if (place.hop >= 0) text += fmt::format(", hop {}", place.hop);
  return text;
}

Trace::Clock::time_point end_of_patience(const std::vector<RankView>& ranks,
                                         std::chrono::milliseconds timeout) {
  auto quietest_worker = Trace::Clock::time_point::max(), last_wait = Trace::Clock::time_point::min();
  for (const RankView& rank : ranks) {
    if (rank.ended) continue;
    if (rank.waiting) last_wait = std::max(last_wait, rank.last_sign);
    else quietest_worker = std::min(quietest_worker, rank.last_sign);
  }
  const bool all_wait = quietest_worker == Trace::Clock::time_point::max();
  return (all_wait ? last_wait : quietest_worker) + timeout;
}

Failure timeout_failure(const std::vector<RankView>& ranks, int waiter,
                        std::chrono::milliseconds timeout) {
  const auto now = Trace::Clock::now();
  std::string lost, waiting;
  for (const RankView& rank : ranks) {
    if (rank.ended || (!rank.waiting && rank.last_sign + timeout > now)) continue;
    std::string& list = rank.waiting ? waiting : lost;
    list += (list.empty() ? "" : ", ") + describe_rank(rank);
  }
  const double seconds = std::chrono::duration<double>(timeout).count();
  if (lost.empty()) {
    return make_failure(
        fmt::format("deadlock: no message for {} s, and every rank waits: {}", seconds, waiting),
        "The ranks do not call the same operations in the same order.");
  }
  return make_failure(
      fmt::format("no answer for {} s from {}; {} waits", seconds, lost,
                  describe_rank(ranks[static_cast<size_t>(waiter)])),
      "Look at what holds that rank there; if its work takes so long, raise the timeout.");
}

}  // namespace ringlet::threads
