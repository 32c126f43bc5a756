#pragma once

#include <cublasLt.h>
#include <cuda_runtime.h>

#include <array>
#include <map>
#include <memory>
#include <span>

#include "kernels/backend.h"
#include "kernels/op_shapes.h"

namespace ringlet::cuda {

/// Matrix products of one stream, by cuBLASLt; by a plain kernel where that offers nothing. What was prepared
/// for a shape is kept. Equal calls give equal bits: the choice of an algorithm depends on shapes, strides
/// and alignments alone.
class Matmul {
 public:
  /// workspace: device memory of this stream, aligned to 256 bytes; 32 MiB is what Hopper wants.
  explicit Matmul(std::span<std::byte> workspace);
  ~Matmul();
  Matmul(const Matmul&) = delete;
  Matmul& operator=(const Matmul&) = delete;

  /// As Backend::matmul; shapes have been checked and are `sizes`.
  void run(cudaStream_t stream, const shapes::MatmulSizes& sizes, const Tensor& a, Transpose transpose_a,
           const Tensor& b, Transpose transpose_b, Write write, const Tensor& out);

 private:
  struct Plan;
  /// All that a plan depends on.
  using Key = std::array<int64_t, 13>;
  std::unique_ptr<Plan> make_plan(const shapes::MatmulSizes& sizes, const Tensor& a, Transpose transpose_a,
                                  const Tensor& b, Transpose transpose_b, const Tensor& out) const;

  std::span<std::byte> workspace_;
  cublasLtHandle_t handle_ = nullptr;
  std::map<Key, std::unique_ptr<Plan>> plans_;
};

/// The same product without cuBLASLt: any shape, stride and alignment; slow.
void plain_matmul(cudaStream_t stream, const shapes::MatmulSizes& sizes, const Tensor& a,
                  Transpose transpose_a, const Tensor& b, Transpose transpose_b, Write write,
                  const Tensor& out);

}  // namespace ringlet::cuda
