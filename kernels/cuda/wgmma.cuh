#pragma once

// Hopper's own instructions (sm_90a): asynchronous matrix products, tiles loaded by the memory engine, barriers
// in shared memory. Source: the PTX manual, "Asynchronous Warpgroup Level Matrix Instructions", "mbarrier",
// "cp.async.bulk.tensor".

#include <cuda.h>
#include <cudaTypedefs.h>
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/cuda/cuda_raii.h"
#include "kernels/cuda/wgmma_multiply.cuh"

namespace ringlet::cuda::wgmma {

inline constexpr int kWarpgroup = 128;  // threads
/// Tiles lie in shared memory as slabs of 64 columns, [columns / 64][rows][64] bf16: rows of 128 bytes, 16-byte
/// chunk c of row r at chunk c ^ (r % 8). Slabs begin at multiples of 1024 bytes.
inline constexpr int kSlabColumns = 64;
inline constexpr int kSlabRowBytes = 128;
inline constexpr int kTileAlignment = 1024;

// ---- addresses ----------------------------------------------------------------------------------------
__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
  return uint32_t(__cvta_generic_to_shared(pointer));
}

// ---- barriers in shared memory: a phase ends when all arrivals and all announced bytes are there ------
// A barrier is 8 bytes. A wait for a parity returns once the phase of that parity, 0 first, has ended; on a new
// barrier a wait for parity 1 returns at once.
__device__ __forceinline__ void barrier_init(uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
/// After the last barrier_init, before the __syncthreads that shows the barriers to everybody.
__device__ __forceinline__ void barrier_init_fence() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
__device__ __forceinline__ void barrier_arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
/// Arrives, and announces bytes that loads will bring.
__device__ __forceinline__ void barrier_arrive_expect(uint32_t barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}
__device__ __forceinline__ void barrier_wait(uint32_t barrier, uint32_t parity) {
  uint32_t done = 0;
  while (done == 0) {
    asm volatile(
        "{.reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p;}"
        : "=r"(done)
        : "r"(barrier), "r"(parity)
        : "memory");
  }
}

/// Which of kStages buffers comes next, and the parity of its turn.
template <int kStages>
struct Turn {
  int stage = 0;
  uint32_t parity = 0;
  __device__ __forceinline__ void advance() {
    if (++stage == kStages) {
      stage = 0;
      parity ^= 1;
    }
  }
};

// ---- hardware barriers of a part of the block: id 1 .. 15, 0 is __syncthreads -------------------------
/// threads: all that sync and arrive, a multiple of 32.
__device__ __forceinline__ void named_barrier_sync(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
__device__ __forceinline__ void named_barrier_arrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// ---- loads --------------------------------------------------------------------------------------------
/// One slab, at column, row, matrix of the map; what lies outside the tensor becomes 0. Its bytes, the zeros too,
/// count at the barrier. One thread calls it.
__device__ __forceinline__ void load_slab(uint32_t to, const CUtensorMap& map, int column, int row,
                                          int matrix, uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes"
      " [%0], [%1, {%3, %4, %5}], [%2];" ::"r"(to),
      "l"(&map), "r"(barrier), "r"(column), "r"(row), "r"(matrix)
      : "memory");
}
/// A tile of kRows rows and kColumns columns: all its slabs. Announces their bytes.
template <int kRows, int kColumns>
__device__ __forceinline__ void load_tile(uint32_t to, const CUtensorMap& map, int row, int matrix,
                                          uint32_t barrier) {
  barrier_arrive_expect(barrier, kRows * kColumns * 2);
#pragma unroll
  for (int slab = 0; slab < kColumns / kSlabColumns; ++slab) {
    load_slab(to + slab * kRows * kSlabRowBytes, map, slab * kSlabColumns, row, matrix, barrier);
  }
}
__device__ __forceinline__ void prefetch_map(const CUtensorMap& map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}

// ---- registers ----------------------------------------------------------------------------------------
/// The whole warpgroup gives back, or takes (and waits for), registers.
template <int kRegisters>
__device__ __forceinline__ void shrink_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ __forceinline__ void grow_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

// ---- matrix products ----------------------------------------------------------------------------------
/// Before the first product that reads registers (sums or a) which other instructions have touched.
__device__ __forceinline__ void multiply_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
/// Closes a group of products.
__device__ __forceinline__ void multiply_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
/// Waits until at most kGroups groups, the newest, are under way. Until then nobody touches their registers.
template <int kGroups>
__device__ __forceinline__ void multiply_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kGroups) : "memory");
}
/// Keeps what computes these registers before this point, and what reads them after it: the compiler knows neither
/// multiply_fence nor multiply_wait as an access. No instruction.
template <int kCount>
__device__ __forceinline__ void pin(float (&registers)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(registers[i])::"memory");
}
template <int kCount>
__device__ __forceinline__ void pin(uint32_t (&registers)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+r"(registers[i])::"memory");
}

/// Descriptor of a tile of `rows` rows at `address`, for Major::k and Major::mn: the next 8 rows are 1024 bytes
/// on, the next 64 columns a slab. A warpgroup's 64 rows of more begin at address + first row * kSlabRowBytes.
__device__ __forceinline__ uint64_t operand(uint32_t address, int rows) {
  const uint64_t slab = uint64_t(rows * kSlabRowBytes) >> 4, eight_rows = 1024 >> 4, swizzle_128 = 1;
  return uint64_t((address & 0x3FFFF) >> 4) | slab << 16 | eight_rows << 32 | swizzle_128 << 62;
}
/// What to add to a descriptor for the k-th 16 of the summed index: it runs along the columns (Major::k) or along
/// the rows (Major::mn).
__device__ __forceinline__ constexpr uint64_t step_k(int k, int rows) {
  return uint64_t(k % 4 * 32 + k / 4 * rows * kSlabRowBytes) >> 4;
}
__device__ __forceinline__ constexpr uint64_t step_mn(int k) { return uint64_t(k * 16 * kSlabRowBytes) >> 4; }

__device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return reinterpret_cast<const uint32_t&>(pair);
}
/// 2^x; denormal results become 0.
__device__ __forceinline__ float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// ---- host ---------------------------------------------------------------------------------------------
/// bf16 [matrices, rows, columns] for load_slab and load_tile: base a multiple of 16 bytes, rows contiguous,
/// matrices matrix_stride elements apart (a multiple of 8). tile_rows: of a slab, <= 256.
struct MapShape {
  int64_t matrices, rows, columns, matrix_stride;
  int tile_rows;
};

inline PFN_cuTensorMapEncodeTiled_v12000 tensor_map_encoder() {
  static const PFN_cuTensorMapEncodeTiled_v12000 encoder = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
    check_cuda(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault,
                                                &found));
    CHECK(found == cudaDriverEntryPointSuccess && function != nullptr, "this driver makes no tensor maps");
    return reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(function);
  }();
  return encoder;
}

inline CUtensorMap make_tensor_map(const void* base, const MapShape& shape) {
  CUtensorMap map;
  const cuuint64_t sizes[3] = {cuuint64_t(shape.columns), cuuint64_t(shape.rows), cuuint64_t(shape.matrices)};
  const cuuint64_t strides[2] = {cuuint64_t(shape.columns) * 2, cuuint64_t(shape.matrix_stride) * 2};
  const cuuint32_t box[3] = {kSlabColumns, cuuint32_t(shape.tile_rows), 1}, every[3] = {1, 1, 1};
  const CUresult result = tensor_map_encoder()(
      &map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 3, const_cast<void*>(base), sizes, strides, box, every,
      CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
      CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  CHECK(result == CUDA_SUCCESS, "tensor map of ", shape.matrices, " x ", shape.rows, " x ", shape.columns,
        ": driver error ", int(result));
  return map;
}

}  // namespace ringlet::cuda::wgmma
