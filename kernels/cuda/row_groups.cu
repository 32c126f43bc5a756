#include "kernels/cuda/row_groups.h"

namespace ringlet::cuda {
namespace {

constexpr int kSlices = 32;

__global__ void add_columns(const float* partials, int64_t rows, int64_t row_stride, int64_t width,
                            float* sums) {
  __shared__ float of_slices[kSlices][33];
  const int64_t column = int64_t(blockIdx.x) * 32 + threadIdx.x;
  float sum = 0;
  if (column < width) {
    for (int64_t row = threadIdx.y; row < rows; row += kSlices) sum += partials[row * row_stride + column];
  }
  of_slices[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y != 0 || column >= width) return;
  for (int slice = 1; slice < kSlices; ++slice) sum += of_slices[slice][threadIdx.x];
  sums[column] += sum;
}

}  // namespace

void add_column_sums(cudaStream_t stream, const float* partials, int64_t rows, int64_t row_stride,
                     int64_t width, float* sums) {
  if (rows == 0 || width == 0) return;
  add_columns<<<unsigned((width + 31) / 32), dim3(32, kSlices), 0, stream>>>(partials, rows, row_stride,
                                                                             width, sums);
  check_cuda(cudaGetLastError());
}

}  // namespace ringlet::cuda
