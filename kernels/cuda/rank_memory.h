#pragma once

#include <memory>

#include "kernels/comm/rank_memory.h"

namespace ringlet::cuda {

/// See CudaInterface::make_rank_memory. Tensors that all stand in host memory are served on the host. Sums on
/// devices are taken by one kernel, or, where devices do not reach each other or the host takes part, in blocks on
/// the host: the bits are the same. Waits for streams of its own, never for a device. Leaves the caller's current
/// device as it was.
std::unique_ptr<RankMemory> make_rank_memory();

}  // namespace ringlet::cuda
