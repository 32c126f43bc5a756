#pragma once

namespace ringlet::cpu {

/// Fused multiply-adds of this processor at this moment, in GFLOP/s over `threads` threads (the
/// caller and threads - 1 others), with the widest vectors that the kernels use here. Takes 2 ms.
/// Machines are shared: what a kernel reaches is told as a share of this, measured right before and
/// after it.
double fma_peak_gflops(int threads);

}  // namespace ringlet::cpu
