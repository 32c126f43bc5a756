#pragma once

#include <memory>

#include "kernels/offload.h"
#include "kernels/trace.h"

namespace ringlet::cuda {

/// See CudaInterface::make_offload.
std::unique_ptr<Offload> make_host_offload(int device, int64_t bytes, Trace& trace);

}  // namespace ringlet::cuda
