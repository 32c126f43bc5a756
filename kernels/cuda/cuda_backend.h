#pragma once

#include <memory>

#include "kernels/backend.h"
#include "kernels/cuda_module.h"

namespace ringlet::cuda {

/// See CudaInterface::make_backend.
std::unique_ptr<Backend> make_cuda_backend(const CudaBackendOptions& options, Trace& trace);

}  // namespace ringlet::cuda
