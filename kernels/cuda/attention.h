#pragma once

#include <cuda_runtime.h>

#include "kernels/backend.h"
#include "kernels/cuda_module.h"

namespace ringlet::cuda {

/// The operations of Backend, on `stream`; shapes have been checked. Each launches and returns.
void attention_start(cudaStream_t stream, const AttentionState& state);
void attention_forward(cudaStream_t stream, CudaAttention path, const AttentionStep& step, const Tensor& q,
                       const Tensor& kv, const AttentionState& state);
void attention_finish(cudaStream_t stream, const HeadShape& shape, const AttentionState& state,
                      const Tensor& output, const Tensor& lse);
void attention_delta(cudaStream_t stream, const HeadShape& shape, const Tensor& output, const Tensor& d_output,
                     const Tensor& delta);
void attention_backward(cudaStream_t stream, CudaAttention path, const AttentionStep& step, const Tensor& q,
                        const Tensor& kv, const AttentionGradient& gradient, const Tensor& dq, Write write,
                        const Tensor& dkv);

// Each path; attention.cu chooses. All are deterministic: no float atomics, one owner per element of each output.
// Those that know no Write add to dkv.
namespace plain {
void attention_forward(cudaStream_t stream, const AttentionStep& step, const Tensor& q, const Tensor& kv,
                       const AttentionState& state);
void attention_backward(cudaStream_t stream, const AttentionStep& step, const Tensor& q, const Tensor& kv,
                        const AttentionGradient& gradient, const Tensor& dq, const Tensor& dkv);
}  // namespace plain
namespace mma {
void attention_forward(cudaStream_t stream, const AttentionStep& step, const Tensor& q, const Tensor& kv,
                       const AttentionState& state);
void attention_backward(cudaStream_t stream, const AttentionStep& step, const Tensor& q, const Tensor& kv,
                        const AttentionGradient& gradient, const Tensor& dq, const Tensor& dkv);
}  // namespace mma
namespace wgmma {
void attention_forward(cudaStream_t stream, const AttentionStep& step, const Tensor& q, const Tensor& kv,
                       const AttentionState& state);
void attention_backward(cudaStream_t stream, const AttentionStep& step, const Tensor& q, const Tensor& kv,
                        const AttentionGradient& gradient, const Tensor& dq, Write write,
                        const Tensor& dkv);
}  // namespace wgmma

}  // namespace ringlet::cuda
