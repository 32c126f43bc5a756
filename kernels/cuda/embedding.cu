#include <bit>
#include <cub/device/device_radix_sort.cuh>

#include "kernels/cuda/embedding.h"
#include "kernels/cuda/row_groups.h"

namespace ringlet::cuda {
namespace {

/// Rows whose tokens are sorted at once.
constexpr int64_t kSlabRows = 1 << 20;
/// Chunks of sorted rows: a thread adds up one chunk's, one after the other.
constexpr int64_t kMostChunks = 2048, kLeastChunkRows = 32;
/// Rows whose values a thread has under way at once.
constexpr int kAtOnce = 4;

template <class T, int kPack>
__global__ void __launch_bounds__(kThreads)
    take_rows(const int32_t* tokens, const T* table, T* y, int64_t rows, int64_t packs) {
  using Elements = Pack<T, kPack>;
  for (int64_t row = int64_t(blockIdx.x) * blockDim.y + threadIdx.y; row < rows;
       row += int64_t(gridDim.x) * blockDim.y) {
    const auto* const from = reinterpret_cast<const Elements*>(table) + tokens[row] * packs;
    auto* const to = reinterpret_cast<Elements*>(y) + row * packs;
    for (int64_t pack = threadIdx.x; pack < packs; pack += blockDim.x) to[pack] = from[pack];
  }
}

__global__ void __launch_bounds__(kThreads) count_up(int32_t* values, int64_t size) {
  for (int64_t i = grid_thread(); i < size; i += grid_threads()) values[i] = int32_t(i);
}

/// Rows of a slab in the order of their tokens, equal tokens in the order of the rows.
struct SortedRows {
  const uint32_t* tokens;
  const int32_t* rows;
  int64_t count, chunk_rows;

  int64_t chunks() const { return (count + chunk_rows - 1) / chunk_rows; }
  __device__ int64_t end_of_chunk(int64_t chunk) const { return min((chunk + 1) * chunk_rows, count); }
  __device__ bool same(int64_t a, int64_t b) const { return tokens[a] == tokens[b]; }
};

template <int kPack>
__device__ void add_to(const float (&values)[kPack], float* to) {
  float sums[kPack];
  load_floats(to, sums);
#pragma unroll
  for (int i = 0; i < kPack; ++i) sums[i] += values[i];
  store_floats(sums, to);
}

// Adds up the runs of equal tokens of one chunk (blockIdx.x). A run that lies inside is added to d_table; the
// parts of one that crosses the chunk's border go to partials: [chunks, 2, columns], part 0 where the run
// began earlier, else part 1.
template <class T, int kPack>
__global__ void __launch_bounds__(kThreads)
    add_chunks(SortedRows sorted, const T* dy, float* d_table, int64_t width, int64_t first_column,
               int64_t columns, float* partials) {
  const int64_t column = (int64_t(blockIdx.y) * blockDim.x + threadIdx.x) * kPack;
  if (column >= columns) return;
  const int64_t chunk = blockIdx.x, begin = chunk * sorted.chunk_rows, end = sorted.end_of_chunk(chunk);
  dy += first_column + column;
  d_table += first_column + column;
  float* const partial = partials + chunk * 2 * columns + column;
  bool began_earlier = begin > 0 && sorted.same(begin - 1, begin);
  float sums[kPack] = {};
  for (int64_t first = begin; first < end; first += kAtOnce) {
    Pack<T, kPack> packs[kAtOnce];
#pragma unroll
    for (int ahead = 0; ahead < kAtOnce; ++ahead) {
      if (first + ahead < end) packs[ahead] = load_pack<kPack>(dy + sorted.rows[first + ahead] * width);
    }
#pragma unroll
    for (int ahead = 0; ahead < kAtOnce; ++ahead) {
      const int64_t i = first + ahead;
      if (i >= end) break;
#pragma unroll
      for (int j = 0; j < kPack; ++j) sums[j] += widen(packs[ahead].values[j]);
      const bool is_last = i + 1 == sorted.count || !sorted.same(i, i + 1);
      if (!is_last && i + 1 < end) continue;
      if (began_earlier)
        store_floats(sums, partial);
      else if (!is_last)
        store_floats(sums, partial + columns);
      else
        add_to(sums, d_table + sorted.tokens[i] * width);
      began_earlier = false;
#pragma unroll
      for (int j = 0; j < kPack; ++j) sums[j] = 0;
    }
  }
}

// For a chunk in which a run begins that goes on in the next one: adds up the run's parts, in order, and adds
// them to d_table.
template <int kPack>
__global__ void __launch_bounds__(kThreads)
    add_crossing_runs(SortedRows sorted, const float* partials, float* d_table, int64_t width,
                      int64_t first_column, int64_t columns) {
  const int64_t column = (int64_t(blockIdx.y) * blockDim.x + threadIdx.x) * kPack;
  const int64_t chunk = blockIdx.x, begin = chunk * sorted.chunk_rows, end = sorted.end_of_chunk(chunk);
  if (column >= columns || end == sorted.count || !sorted.same(end - 1, end)) return;
  // A run that fills the chunk and began earlier belongs to the chunk where it began.
  if (begin > 0 && sorted.same(begin - 1, end - 1)) return;
  float sums[kPack];
  load_floats(partials + (chunk * 2 + 1) * columns + column, sums);
  const auto goes_on = [&](int64_t next) {
    return next * sorted.chunk_rows < sorted.count && sorted.same(end - 1, next * sorted.chunk_rows);
  };
  int64_t next = chunk + 1;
  for (; goes_on(next + kAtOnce - 1); next += kAtOnce) {
    float values[kAtOnce][kPack];
#pragma unroll
    for (int ahead = 0; ahead < kAtOnce; ++ahead) {
      load_floats(partials + (next + ahead) * 2 * columns + column, values[ahead]);
    }
#pragma unroll
    for (int ahead = 0; ahead < kAtOnce; ++ahead) {
#pragma unroll
      for (int j = 0; j < kPack; ++j) sums[j] += values[ahead][j];
    }
  }
  for (; goes_on(next); ++next) {
    float values[kPack];
    load_floats(partials + next * 2 * columns + column, values);
#pragma unroll
    for (int j = 0; j < kPack; ++j) sums[j] += values[j];
  }
  add_to(sums, d_table + first_column + column + sorted.tokens[end - 1] * width);
}

/// Scratch, handed out from the front.
struct Scratch {
  std::span<std::byte> left;
  template <class T>
  T* take(int64_t count) {
    const size_t bytes = (size_t(count) * sizeof(T) + 255) / 256 * 256;
    CHECK(bytes <= left.size(), "embedding_backward: ", left.size(), " bytes of scratch are left, ", bytes,
          " needed");
    auto* const taken = reinterpret_cast<T*>(left.data());
    left = left.subspan(bytes);
    return taken;
  }
};

/// What is behind the result in scratch is free again for what follows on the stream.
SortedRows sort_rows(cudaStream_t stream, const int32_t* tokens, int64_t count, int64_t vocabulary,
                     Scratch& scratch) {
  auto* const sorted_tokens = scratch.take<uint32_t>(count);
  auto* const sorted_rows = scratch.take<int32_t>(count);
  Scratch passing = scratch;
  auto* const rows = passing.take<int32_t>(count);
  count_up<<<blocks_for(count), kThreads, 0, stream>>>(rows, count);
  check_cuda(cudaGetLastError());
  const int bits = std::max(1, int(std::bit_width(uint64_t(vocabulary - 1))));
  const auto* const keys = reinterpret_cast<const uint32_t*>(tokens);  // none is negative
  size_t bytes = 0;
  check_cuda(cub::DeviceRadixSort::SortPairs(nullptr, bytes, keys, sorted_tokens, rows, sorted_rows,
                                             int(count), 0, bits, stream));
  auto* const room = passing.take<std::byte>(int64_t(bytes));
  check_cuda(cub::DeviceRadixSort::SortPairs(room, bytes, keys, sorted_tokens, rows, sorted_rows, int(count),
                                             0, bits, stream));
  const int64_t chunk_rows = std::max(kLeastChunkRows, (count + kMostChunks - 1) / kMostChunks);
  return {sorted_tokens, sorted_rows, count, chunk_rows};
}

/// Adds one slab's rows, as many columns at a time as there is scratch for.
template <class T, int kPack>
void add_slab(cudaStream_t stream, const SortedRows& sorted, const T* dy, Scratch scratch,
              const Tensor& d_table) {
  const int64_t width = d_table.shape[1], chunks = sorted.chunks();
  const int64_t room = int64_t(scratch.left.size() / sizeof(float)) / (2 * chunks) / kPack * kPack;
  CHECK(room > 0, "embedding_backward: no scratch is left");
  auto* const partials = reinterpret_cast<float*>(scratch.left.data());
  for (int64_t first = 0; first < width; first += room) {
    const int64_t columns = std::min(room, width - first), packs = columns / kPack;
    const unsigned threads = unsigned(std::min<int64_t>(kThreads, (packs + 31) / 32 * 32));
    const dim3 grid(unsigned(chunks), unsigned((packs + threads - 1) / threads));
    add_chunks<T, kPack>
        <<<grid, threads, 0, stream>>>(sorted, dy, elements<float>(d_table), width, first, columns, partials);
    check_cuda(cudaGetLastError());
    add_crossing_runs<kPack>
        <<<grid, threads, 0, stream>>>(sorted, partials, elements<float>(d_table), width, first, columns);
    check_cuda(cudaGetLastError());
  }
}

}  // namespace

void embedding_forward(cudaStream_t stream, const Tensor& tokens, const Tensor& table, const Tensor& y) {
  if (y.size() == 0) return;
  with_activations(table.dtype, [&](auto type) {
    using T = decltype(type);
    with_packs<T>(table.shape[1], {table.data, y.data}, [&](auto pack) {
      const int64_t packs = table.shape[1] / pack();
      const RowGroups groups = row_groups(packs, 4, kThreads);
      take_rows<T, pack()><<<blocks_of_rows(y.rows(), groups), groups.threads, 0, stream>>>(
          elements<const int32_t>(tokens), elements<const T>(table), elements<T>(y), y.rows(), packs);
    });
  });
  check_cuda(cudaGetLastError());
}

void embedding_backward(cudaStream_t stream, const Tensor& tokens, const Tensor& dy,
                        std::span<std::byte> scratch, const Tensor& d_table) {
  if (dy.size() == 0) return;
  for (int64_t first = 0; first < dy.rows(); first += kSlabRows) {
    const int64_t count = std::min(kSlabRows, dy.rows() - first);
    Scratch left{scratch};
    const SortedRows sorted =
        sort_rows(stream, elements<const int32_t>(tokens) + first, count, d_table.rows(), left);
    with_activations(dy.dtype, [&](auto type) {
      using T = decltype(type);
      with_packs<T>(dy.shape[1], {dy.data, d_table.data}, [&](auto pack) {
        add_slab<T, pack()>(stream, sorted, elements<const T>(dy) + first * dy.shape[1], left, d_table);
      });
    });
  }
}

}  // namespace ringlet::cuda
