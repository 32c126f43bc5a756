#pragma once

#include <cstdlib>

#include "kernels/cuda_module.h"

namespace ringlet::test {

/// The module that RINGLET_CUDA_MODULE names, else the one beside the program; or why there is none.
inline CudaModule module_under_test() {
  const char* const named = std::getenv("RINGLET_CUDA_MODULE");
  return open_cuda_module(named != nullptr ? named : cuda_module_path());
}

}  // namespace ringlet::test
