#pragma once

#include <string>

#include "kernels/comm/launcher.h"
#include "train/config.h"

namespace ringlet {

/// This process among those of a run: all of the run where its ranks are threads, one rank with run.comm = "nccl".
struct RankProcess {
  int rank = 0, size = 1;   // of processes
  int local_rank = 0;       // which GPU of this machine is its own
  std::string launcher{};   // "torchrun", ...; empty: none
  std::string address{};    // host:port where rank 0 listens; empty where it is alone
  /// Holds the run's folder, and speaks.
  bool leads() const { return rank == 0; }
};

/// Which one this is: run.comm = "threads", or no launcher: the only one. Throws UsageError when what a launcher has
/// set cannot be, nobody tells where rank 0 listens, or the config is not for GPUs.
RankProcess find_process(const Config& config, const Environment& environment);
/// In the environment of this process.
RankProcess find_process(const Config& config);

/// The config with run.ranks as many as there are processes, where these are the ranks. Throws UsageError where
/// run.ring does not divide them.
Config with_process_count(const Config& config, const RankProcess& process);

/// One line: "NCCL: rank 0 of 8 processes (torchrun), which meet at node1:29500".
std::string describe(const RankProcess& process);

}  // namespace ringlet
