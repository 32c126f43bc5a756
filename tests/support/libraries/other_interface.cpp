// A CUDA module of another version: only its number may be read.
#include "kernels/cuda_module.h"

namespace {

constexpr ringlet::CudaInterface kInterface{ringlet::kCudaInterfaceVersion + 1, nullptr};

}  // namespace

extern "C" const ringlet::CudaInterface* ringlet_cuda_module() { return &kInterface; }
