#pragma once

#include "kernels/cpu/thread_team.h"

namespace ringlet::cpu {

/// Fused multiply-adds of this processor at this moment, in GFLOP/s over the threads of a team, with the widest vectors
/// that the kernels use here. Takes 1 to 2 ms. Machines are shared, and their clock seems to follow the power that they
/// draw: what a kernel reaches is told as a share of this, measured right before and after it. A longer loop, which loads
/// nothing, would raise the clock beyond what the kernel had.
double fma_peak_gflops(ThreadTeam& team);

}  // namespace ringlet::cpu
