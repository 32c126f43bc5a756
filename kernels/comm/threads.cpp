#include "kernels/comm/threads.h"

#include <fmt/format.h>

#include <atomic>
#include <memory>
#include <thread>
#include <vector>

#include "kernels/comm/threads_comm.h"
#include "kernels/comm/threads_world.h"

namespace ringlet {
namespace {

using threads::World;

/// From a failure to the return of run_ranks; ranks that have not ended by then are left behind.
constexpr std::chrono::milliseconds kGrace{1500};

/// Shared, because a thread that is stuck cannot be joined and must not outlive what it uses.
struct Run {
  Run(const ThreadsOptions& options, const std::function<void(Comm&, Trace&)>& main)
      : world(options), rank_main(main) {}
  World world;
  const std::function<void(Comm&, Trace&)> rank_main;
};

void run_rank(Run& run, int rank) {
  World& world = run.world;
  threads::ThreadsComm comm(world, world.root(), rank);
  try {
    run.rank_main(comm, world.trace(rank));
  } catch (...) {
    const std::string prefix = world.size() > 1 ? fmt::format("rank {}: ", rank) : "";
    world.fail(threads::describe_failure(std::current_exception(), prefix));
  }
  world.end_rank(rank);
}

std::vector<std::thread> start_ranks(const std::shared_ptr<Run>& run) {
  std::vector<std::thread> ranks;
  const int count = run->world.size();
  try {
    for (int rank = 0; rank < count; ++rank) {
      ranks.emplace_back([run, rank] { run_rank(*run, rank); });
    }
  } catch (const std::exception& error) {
    run->world.fail(threads::make_failure(
        fmt::format("cannot start a thread for rank {}: {}", ranks.size(), error.what()),
        "Use fewer ranks, or raise the limit of threads (ulimit -u)."));
    for (int rank = static_cast<int>(ranks.size()); rank < count; ++rank) run->world.end_rank(rank);
  }
  return ranks;
}

std::atomic<bool> left_behind{false};  // of the process, as are the threads

}  // namespace

bool ranks_were_left_behind() { return left_behind; }

void run_ranks(const ThreadsOptions& options,
               const std::function<void(Comm& world, Trace& trace)>& rank_main) {
  CHECK(options.ranks >= 1, "ranks = ", options.ranks);
  const auto run = std::make_shared<Run>(options, rank_main);
  World& world = run->world;
  std::thread progress([&world] { world.progress(); });
  std::vector<std::thread> ranks = start_ranks(run);
  world.wait_for_ranks(kGrace);
  for (size_t rank = 0; rank < ranks.size(); ++rank) {
    if (world.ended(static_cast<int>(rank))) {
      ranks[rank].join();
    } else {
      ranks[rank].detach();
      left_behind = true;
    }
  }
  world.stop_progress();
  progress.join();
  if (const auto failure = world.failure()) std::rethrow_exception(failure->error);
}

}  // namespace ringlet
