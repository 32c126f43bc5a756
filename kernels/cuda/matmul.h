#pragma once

#include <cublasLt.h>
#include <cuda_runtime.h>

#include <map>
#include <memory>
#include <span>

#include "kernels/backend.h"
#include "kernels/cuda/matmul_choice.h"
#include "kernels/op_shapes.h"

namespace ringlet::cuda {

/// Matrix products of one stream, by cuBLASLt; by a plain kernel where that offers nothing. What was
/// prepared for a shape is kept. Equal calls give equal bits: shapes, strides and alignments decide which
/// algorithm cuBLASLt proposes first, and large products in bf16 take a faster one by trial only where it
/// gives the same bits (see CudaTuning). A trial waits for the stream.
class Matmul {
 public:
  /// workspace, scratch: device memory of this stream, aligned to 256 bytes; 32 MiB of workspace is what
  /// Hopper wants, scratch serves trials.
  Matmul(std::span<std::byte> workspace, std::span<std::byte> scratch, CudaTuning tuning);
  ~Matmul();
  Matmul(const Matmul&) = delete;
  Matmul& operator=(const Matmul&) = delete;

  /// As Backend::matmul; shapes have been checked and are `sizes`.
  void run(cudaStream_t stream, const shapes::MatmulSizes& sizes, const Tensor& a, Transpose transpose_a,
           const Tensor& b, Transpose transpose_b, Write write, const Tensor& out);

 private:
  struct Plan;
  std::unique_ptr<Plan> make_plan(const shapes::MatmulSizes& sizes, const Tensor& a, Transpose transpose_a,
                                  const Tensor& b, Transpose transpose_b, const Tensor& out) const;
  /// Looks for the fastest of the plan's algorithms, if that is still to be done.
  void settle(cudaStream_t stream, const MatmulKey& key, Plan& plan, const Tensor& a, const Tensor& b,
              Write write, const Tensor& out);
  /// False: refused, nothing has been launched.
  bool multiply(cudaStream_t stream, const Plan& plan, const cublasLtMatmulAlgo_t& algorithm, const Tensor& a,
                const Tensor& b, float beta, void* out) const;

  std::span<std::byte> workspace_, scratch_;
  const CudaTuning tuning_;
  MatmulChoices& choices_;  // of the device
  cublasLtHandle_t handle_ = nullptr;
  std::map<MatmulKey, std::unique_ptr<Plan>> plans_;
};

/// The same product without cuBLASLt: any shape, stride and alignment; slow.
void plain_matmul(cudaStream_t stream, const shapes::MatmulSizes& sizes, const Tensor& a,
                  Transpose transpose_a, const Tensor& b, Transpose transpose_b, Write write,
                  const Tensor& out);

}  // namespace ringlet::cuda
