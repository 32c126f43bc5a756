#pragma once

#include <functional>
#include <string>
#include <vector>

#include "kernels/comm/threads.h"
#include "tests/distributed/vector_view.h"

namespace ringlet::test {

/// What run_ranks threw: "Error: cause [advice]"; "nothing" if it returned.
inline std::string outcome(const ThreadsOptions& options,
                           const std::function<void(Comm&, Trace&)>& rank_main) {
  try {
    run_ranks(options, rank_main);
  } catch (const PeerFailed& error) {
    return std::string("PeerFailed: ") + error.what();
  } catch (const UsageError& error) {
    return std::string("UsageError: ") + error.what() + " [" + error.advice + "]";
  } catch (const Error& error) {
    return std::string("Error: ") + error.what() + " [" + error.advice + "]";
  }
  return "nothing";
}

inline void shift(Comm& comm) {
  std::vector<float> sent(100), received(100);
  const int size = comm.size();
  const Message send{(comm.rank() + 1) % size, view(sent)};
  const Message receive{(comm.rank() + size - 1) % size, view(received)};
  comm.exchange({&send, 1}, {&receive, 1}, {}).wait();
}

inline void all_reduce(Comm& comm) {
  std::vector<double> values(100);
  comm.all_reduce(view(values), {}).wait();
}

}  // namespace ringlet::test
