#pragma once

#include <sched.h>
#include <unistd.h>

namespace ringlet {

/// Of a thread that works beside one that may be pinned (cpu::ThreadTeam), and was started by it: it would be pinned to the
/// same core. Gives the calling thread the cores of the process's first thread, which nobody pins.
inline void use_all_cores() {
  cpu_set_t cores;
  if (sched_getaffinity(getpid(), sizeof cores, &cores) != 0) return;
  static_cast<void>(sched_setaffinity(0, sizeof cores, &cores));  // where the kernel refuses, it stays
}

}  // namespace ringlet
