#include "kernels/cuda/elementwise.h"
#include "kernels/cuda/packs.h"

namespace ringlet::cuda {
namespace {

template <class T>
__global__ void fill_elements(float value, T* to, int64_t whole_packs, int64_t size) {
  constexpr int kPack = kFullPack<T>;
  float values[kPack];
#pragma unroll
  for (int i = 0; i < kPack; ++i) values[i] = value;
  for (int64_t pack = grid_thread(); pack < whole_packs; pack += grid_threads()) {
    store_floats(values, to + pack * kPack);
  }
  for (int64_t i = whole_packs * kPack + grid_thread(); i < size; i += grid_threads())
    to[i] = round_to<T>(value);
}

__global__ void add_floats(const float* from, float* to, int64_t whole_packs, int64_t size) {
  constexpr int kPack = kFullPack<float>;
  for (int64_t pack = grid_thread(); pack < whole_packs; pack += grid_threads()) {
    float sums[kPack], values[kPack];
    load_floats(to + pack * kPack, sums);
    load_floats(from + pack * kPack, values);
#pragma unroll
    for (int i = 0; i < kPack; ++i) sums[i] += values[i];
    store_floats(sums, to + pack * kPack);
  }
  for (int64_t i = whole_packs * kPack + grid_thread(); i < size; i += grid_threads()) to[i] += from[i];
}

/// Blocks of memory, one after the other in `from`, apart in `to`; all counted in words.
template <class Word>
__global__ void copy_blocks(const Word* from, Word* to, int64_t block_words, int64_t stride_words) {
  from += blockIdx.y * block_words;
  to += blockIdx.y * stride_words;
  for (int64_t i = grid_thread(); i < block_words; i += grid_threads()) to[i] = from[i];
}

template <class Word>
void launch_copy_blocks(cudaStream_t stream, const Tensor& from, std::byte* to, int64_t block_bytes,
                        int64_t stride_bytes) {
  constexpr int64_t kMostBlocks = 65535;  // of a grid along y
  const int64_t words = block_bytes / int64_t(sizeof(Word)), stride = stride_bytes / int64_t(sizeof(Word));
  for (int64_t first = 0; first < from.rows(); first += kMostBlocks) {
    const dim3 grid(blocks_for(words), unsigned(std::min(kMostBlocks, from.rows() - first)));
    copy_blocks<<<grid, kThreads, 0, stream>>>(elements<const Word>(from) + first * words,
                                               reinterpret_cast<Word*>(to) + first * stride, words, stride);
    check_cuda(cudaGetLastError());
  }
}

}  // namespace

void fill(cudaStream_t stream, float value, const Tensor& to) {
  if (to.size() == 0) return;
  with_activations(to.dtype, [&](auto type) {
    using T = decltype(type);
    const int64_t packs = all_aligned({to.data}) ? to.size() / kFullPack<T> : 0;
    const int64_t work = packs > 0 ? packs : to.size();
    fill_elements<T><<<blocks_for(work), kThreads, 0, stream>>>(value, elements<T>(to), packs, to.size());
  });
  check_cuda(cudaGetLastError());
}

void copy(cudaStream_t stream, const Tensor& from, const Tensor& to) {
  if (from.bytes() == 0) return;
  check_cuda(cudaMemcpyAsync(to.data, from.data, size_t(from.bytes()), cudaMemcpyDeviceToDevice, stream));
}

void add(cudaStream_t stream, const Tensor& from, const Tensor& to) {
  if (to.size() == 0) return;
  const int64_t packs = all_aligned({from.data, to.data}) ? to.size() / kFullPack<float> : 0;
  const int64_t work = packs > 0 ? packs : to.size();
  add_floats<<<blocks_for(work), kThreads, 0, stream>>>(elements<float>(from), elements<float>(to), packs,
                                                        to.size());
  check_cuda(cudaGetLastError());
}

void copy_rows(cudaStream_t stream, const Tensor& from, int64_t first_row, const Tensor& to) {
  const int64_t bytes = element_bytes(from.dtype);
  const int64_t block_bytes = from.row_size() * bytes, stride_bytes = to.row_size() * bytes;
  if (from.rows() == 0 || block_bytes == 0) return;
  std::byte* const target = to.data + first_row * from.shape[2] * bytes;
  if (block_bytes % 16 == 0 && stride_bytes % 16 == 0 && all_aligned({from.data, target})) {
    launch_copy_blocks<uint4>(stream, from, target, block_bytes, stride_bytes);
  } else {
    launch_copy_blocks<uint16_t>(stream, from, target, block_bytes, stride_bytes);
  }
}

}  // namespace ringlet::cuda
