#pragma once

#include <cuda_runtime.h>

#include <span>

#include "kernels/tensor.h"

namespace ringlet::cuda {

/// Of inputs, and of outputs, of one sum.
constexpr size_t kMostSummed = 128;

/// Each output = (input 0 + input 1) + input 2 ..., f32 or f64, all contiguous, of the same size, and within reach
/// of the stream's device, which is current. An output may be an input. Launches and returns; equal bits to the
/// host's sum.
void launch_sum(cudaStream_t stream, std::span<const Tensor> inputs, std::span<const Tensor> outputs);

/// Loads the kernels on the current device. Their first launch would do it, but may wait for all streams to do so.
void load_sum_kernels();

}  // namespace ringlet::cuda
