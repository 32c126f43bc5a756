#pragma once

#include <chrono>
#include <functional>

#include "kernels/comm.h"
#include "kernels/comm/rank_memory.h"
#include "kernels/comm/transfer_observer.h"
#include "kernels/trace.h"

namespace ringlet {

struct ThreadsOptions {
  int ranks = 1;
  /// How long a rank waits for a message, and others give no sign of life (kernels/trace.h), before it
  /// reports who has not answered.
  std::chrono::milliseconds timeout{120'000};
  /// Told of every message and collective of more than one rank by the progress thread; absent: nobody. Must outlive
  /// run_ranks.
  TransferObserver* observer = nullptr;
  /// What moves and sums the tensors; absent: make_host_memory(). Must outlive run_ranks.
  RankMemory* memory = nullptr;
};

/// Runs `rank_main` once per rank, each on a thread of its own in this process, connected by a Comm
/// in memory. Messages are copied, and sums taken, by one progress thread that sleeps when
/// there is nothing to do. Returns when all ranks have returned. When one throws, the waits of all
/// others throw PeerFailed, and the first error is rethrown here with its rank named: UsageError as
/// such, all else as Error. A rank that returns while others still wait for it, or neither answers nor
/// gives a sign of life within the timeout, is an Error that names it with its step, phase, layer and hop.
///
/// Two seconds after a failure this returns in any case: a rank that is stuck is left behind on its
/// thread, and the program should leave through std::_Exit. A rank that throws frees its memory on
/// the way out; a Comm from split() that was declared after that memory first gives up the messages
/// that are still in flight, `world` itself cannot.
void run_ranks(const ThreadsOptions& options,
               const std::function<void(Comm& world, Trace& trace)>& rank_main);

/// Has a run_ranks of this process left a rank behind? Who caught its error should keep what it has, and leave.
bool ranks_were_left_behind();

}  // namespace ringlet
