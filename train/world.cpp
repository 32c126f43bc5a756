#include "train/world.h"

#include <algorithm>

#include "kernels/comm/threads.h"
#include "model/block_inputs.h"
#include "train/devices.h"
#include "train/machine.h"
#include "train/units.h"

namespace ringlet {

HostThreads host_threads(const Config::Run& run) {
  const int count = run.threads_per_rank > 0 ? int(run.threads_per_rank) : std::max(1, usable_cores() / int(run.ranks));
  return {count, run.pin_threads};
}

int64_t offload_bytes(const Config& config, int world_rank) {
  const SequenceLayout layout = config.run.sequence_layout();
  return BlockInputs::offloaded_bytes(config.gpt(1), layout.rows(world_rank % layout.ring_size()));
}

std::unique_ptr<Offload> make_offload(const Config& config, const Devices& devices, int world_rank, Trace& trace) {
  if (config.memory.offload.empty()) return nullptr;
  return devices.make_offload(config, world_rank, offload_bytes(config, world_rank), trace);
}

void run_world(const Config& config, const RankMain& rank_main,
               const std::function<TransferObserver&()>& new_observer) {
  const auto observer = [&]() -> TransferObserver* { return new_observer ? &new_observer() : nullptr; };
  ThreadsOptions options;
  options.ranks = int(config.run.ranks);
  options.timeout = std::chrono::milliseconds(int64_t(1e3 * config.run.timeout_seconds));
  // What travels over a link is what the link says, not the copy that stands for it.
  if (config.run.link.empty()) options.observer = observer();
  const Devices devices(config.run.device, host_threads(config.run));
  options.memory = devices.memory();
  run_ranks(options, [&](Comm& all_ranks, Trace& trace) {
    // On the processor addresses only: a page costs memory when it is first touched.
    const int64_t arena_bytes = config.memory.arena_bytes > 0
                                    ? config.memory.arena_bytes
                                    : devices.share_bytes(all_ranks.rank(), all_ranks.size());
    const std::unique_ptr<Backend> device =
        devices.make(all_ranks.rank(), all_ranks.size(), arena_bytes, trace);
    const std::unique_ptr<Offload> offload = make_offload(config, devices, all_ranks.rank(), trace);
    // Comms that die before the device: a rank that fails gives up the messages in its memory first.
    std::unique_ptr<Comm> world = all_ranks.split(0);
    std::unique_ptr<Comm> ring = world->split(world->rank() / int(config.run.ring_size()));
    if (!config.run.link.empty()) {
      const Link link = parse_link(config.run.link);
      world = std::make_unique<EmulatedLink>(std::move(world), link, trace, observer());
      ring = std::make_unique<EmulatedLink>(std::move(ring), link, trace, observer());
    }
    rank_main({*device, *ring, trace, offload.get()}, *world);
    device->synchronize();
  });
}

void expect_no_rank_left_behind() {
  if (!ranks_were_left_behind()) return;
  throw Error("a rank has not ended after this error, and would go on beside what follows",
              "the same command goes on behind what failed");
}

}  // namespace ringlet
