#pragma once

#include <functional>
#include <memory>

#include "kernels/comm.h"
#include "kernels/comm/transfer_observer.h"
#include "model/step.h"
#include "train/config.h"
#include "train/devices.h"

namespace ringlet {

/// What one rank runs: its device and ring, and the world of all rings.
using RankMain = std::function<void(RankContext context, Comm& world)>;

/// Starts run.ranks ranks as threads, each with a device of its own, and cuts them into rings of run.ring: ranks
/// i * ring ... of the world are ring i. Returns when all have returned; throws the first error (kernels/comm/threads.h).
/// new_observer: gives, to any thread, an observer of its own to each part of the world that moves messages: the threads'
/// memory, or every emulated link; absent: nobody watches. What it gives must outlive the call.
void run_world(const Config& config, const RankMain& rank_main,
               const std::function<TransferObserver&()>& new_observer = {});

/// Bytes that a rank needs in memory.offload.
int64_t offload_bytes(const Config& config, int world_rank);

/// A rank's part of memory.offload; absent where there is none.
std::unique_ptr<Offload> make_offload(const Config& config, const Devices& devices, int world_rank, Trace& trace);

/// run.threads_per_rank, or an equal share of the cores that this process may use, at least one; run.pin_threads.
HostThreads host_threads(const Config::Run& run);

/// Throws Error where a failed run of this process has left a rank behind on its thread (ranks_were_left_behind()):
/// another must not begin beside it. Called once what failed is recorded.
void expect_no_rank_left_behind();

}  // namespace ringlet
