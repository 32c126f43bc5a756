#include "train/rank_process.h"

#include <fmt/format.h>

#include <cstdlib>

#include "kernels/check.h"
#include "train/stages.h"

namespace ringlet {
namespace {

/// Not of every config with nccl: other commands than training run it on threads, and on any device.
void check_serves_nccl(const Config& config) {
  const Config::Run& run = config.run;
  if (run.device != DeviceKind::cuda) {
    throw UsageError("run.comm = \"nccl\" needs run.device = \"cuda\"",
                     "set run.device = \"cuda\", or run.comm = \"threads\"");
  }
  if (!run.link.empty()) {
    throw UsageError(fmt::format("run.link = \"{}\" is emulated between threads, not over nccl", run.link),
                     "set run.link = \"\", or run.comm = \"threads\"");
  }
  // Each process would find a budget of its own, and what all must do alike would differ.
  if (chooses_memory(config) && config.memory.arena_bytes == 0) {
    throw UsageError("memory.recompute = \"auto\" needs memory.arena_bytes with run.comm = \"nccl\"",
                     "set memory.arena_bytes, the same in all processes, or name a policy");
  }
}

}  // namespace

RankProcess find_process(const Config& config, const Environment& environment) {
  if (config.run.comm == CommKind::threads) return {};
  check_serves_nccl(config);
  std::optional<Launch> launch;
  try {
    launch = find_launch(environment);
  } catch (const UsageError& error) {
    throw UsageError(error.what(),
                     "start all ranks with torchrun, srun or mpirun, or set RANK, WORLD_SIZE and LOCAL_RANK");
  }
  if (!launch) return {};
  RankProcess process{launch->rank, launch->size, launch->local_rank, launch->launcher,
                      config.run.address};
  if (process.address.empty()) process.address = launch->address;
  if (process.size > 1 && process.address.empty()) {
    throw UsageError(fmt::format("nobody tells rank {} of {} where rank 0 listens", process.rank, process.size),
                     "set run.address to host:port of rank 0's machine, or MASTER_ADDR and MASTER_PORT");
  }
  return process;
}

RankProcess find_process(const Config& config) {
  return find_process(config, [](const char* name) -> const char* { return std::getenv(name); });
}

Config with_process_count(const Config& config, const RankProcess& process) {
  if (config.run.comm == CommKind::threads) return config;
  Config result = config;
  result.run.ranks = process.size;
  check_config(result);
  return result;
}

std::string describe(const RankProcess& process) {
  if (process.size == 1) return "NCCL: one process";
  return fmt::format("NCCL: rank {} of {} processes ({}), which meet at {}", process.rank, process.size,
                     process.launcher, process.address);
}

}  // namespace ringlet
