#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/backend.h"

/// What the attention kernels share: where the rows of a step lie, cut into tiles, and who sees whom.
///
/// Rows of a piece are counted in slots: row i stands in slot i + skipped, and tiles begin at slots that are
/// multiples of 64, which is where position / stride is a multiple of 64. So a piece that is cut at such
/// positions has the same tiles as the whole, and sums that are taken tile by tile have the same bits. Slots
/// below `skipped` and from slot_end() on hold no row.
///
/// The order that keeps the bits: a query takes its key tiles downwards; a key takes its query tiles upwards
/// and, within a query tile, the heads of its KV head upwards (a cut of the queries must not change which
/// head is next).
namespace ringlet::cuda {

inline constexpr int32_t kSlotsPerTile = 64;

struct TiledPiece {
  int64_t first_position, stride;
  int64_t first_row;  // of the rank; of no use for keys
  int32_t row_count;
  int32_t skipped;  // slots of the first tile that come before the piece

  __host__ __device__ int32_t slot_end() const { return skipped + row_count; }
  /// Tiles of `slots` slots, a multiple of 64.
  __host__ __device__ int32_t tile_count(int32_t slots) const { return (slot_end() + slots - 1) / slots; }
  __host__ __device__ bool holds(int32_t slot) const {
    return uint32_t(slot - skipped) < uint32_t(row_count);
  }
  __host__ __device__ int64_t position(int32_t slot) const {
    return first_position + int64_t(slot - skipped) * stride;
  }
};

inline TiledPiece tiled(const Piece& piece) {
  return {piece.first_position, piece.stride, piece.first_row, int32_t(piece.row_count),
          int32_t(piece.first_position / piece.stride % kSlotsPerTile)};
}

/// A step as the kernels get it.
struct StepView {
  int32_t heads, kv_heads, head_dim;
  int64_t rows;  // all rows of the rank
  TiledPiece queries, keys;
  const int64_t* first_visible;  // of the first row of `queries`

  __host__ __device__ int32_t group() const { return heads / kv_heads; }  // query heads of a KV head
  /// The row of q, dq and state.output, over all heads, that slot 0 of `queries` would have in a head. May be
  /// negative: only slots that hold a row are in the tensor. lse, maximum and sum have an element per such
  /// row.
  __host__ __device__ int64_t query_row(int32_t head) const {
    return head * rows + queries.first_row - queries.skipped;
  }
  /// The same in kv and dkv: keys of all KV heads, then values of all.
  __host__ __device__ int64_t key_row(int32_t kv_head) const {
    return int64_t(kv_head) * keys.row_count - keys.skipped;
  }
  __host__ __device__ int64_t value_row(int32_t kv_head) const { return key_row(kv_heads + kv_head); }
};

inline StepView view_of(const AttentionStep& step, const Tensor& q) {
  const HeadShape& shape = step.shape;
  return {int32_t(shape.heads),
          int32_t(shape.kv_heads),
          int32_t(shape.head_dim),
          q.shape[1],
          tiled(step.queries),
          tiled(step.keys),
          step.first_visible.as<int64_t>().data() + step.queries.first_row};
}

/// Slots first ... last; none where first > last.
struct Slots {
  int32_t first, last;
  __device__ __forceinline__ bool hold(int32_t slot) const { return first <= slot && slot <= last; }
};

/// The keys that the query in a slot sees. Both ends do not fall from one query to the next, also where there
/// is none between them. A slot without a query sees nothing.
__device__ __forceinline__ Slots keys_seen_by(const StepView& view, int32_t query_slot) {
  const TiledPiece& keys = view.keys;
  if (!view.queries.holds(query_slot)) return {1, 0};
  const int64_t before = view.first_visible[query_slot - view.queries.skipped] - keys.first_position;
  const int64_t ahead = view.queries.position(query_slot) - keys.first_position;
  const int64_t first = before <= 0 ? 0 : (before + keys.stride - 1) / keys.stride;
  const int64_t last = ahead < 0 ? -1 : ahead / keys.stride;
  return {int32_t(min(first, int64_t(keys.row_count))) + keys.skipped,
          int32_t(min(last, int64_t(keys.row_count - 1))) + keys.skipped};
}

/// The slots of queries, as an interval, in which lie all that see a key in `first_key` ... `last_key` (slots
/// that hold keys). Not all of the interval need see one.
__device__ __forceinline__ Slots queries_that_see(const StepView& view, int32_t first_key, int32_t last_key) {
  const TiledPiece& queries = view.queries;
  const int64_t before = view.keys.position(first_key) - queries.first_position;
  const int64_t first = before <= 0 ? 0 : (before + queries.stride - 1) / queries.stride;
  const int64_t last_position = view.keys.position(last_key);
  int32_t low = 0, high = queries.row_count;  // first_visible is sorted: how many begin early enough
  while (low < high) {
    const int32_t middle = low + (high - low) / 2;
    if (view.first_visible[middle] <= last_position)
      low = middle + 1;
    else
      high = middle;
  }
  return {int32_t(min(first, int64_t(queries.row_count))) + queries.skipped, low - 1 + queries.skipped};
}

/// The key tiles that a tile of queries needs, and which of them all its queries see whole.
struct KeyTiles {
  int32_t first, last;              // none where first > last
  int32_t whole_first, whole_last;  // slots: a tile that lies between needs no mask

  __device__ __forceinline__ bool whole(int32_t tile) const {
    return tile * kSlotsPerTile >= whole_first && (tile + 1) * kSlotsPerTile - 1 <= whole_last;
  }
};

/// For the queries in slots [slot, slot + slots), of which at least one holds a query.
__device__ __forceinline__ KeyTiles key_tiles_of(const StepView& view, int32_t slot, int32_t slots) {
  const Slots lowest = keys_seen_by(view, max(slot, view.queries.skipped));
  const Slots highest = keys_seen_by(view, min(slot + slots, view.queries.slot_end()) - 1);
  if (lowest.first > highest.last) return {1, 0, 1, 0};
  return {lowest.first / kSlotsPerTile, highest.last / kSlotsPerTile, highest.first, lowest.last};
}

// ---- values: f32 and bf16, four or eight at a time, aligned to their size
// ------------------------------------

__device__ __forceinline__ float2 widen(uint32_t pair) {
  return {__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u)};
}

/// Two floats to bf16, the first in the low half.
__device__ __forceinline__ uint32_t narrow(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}

__device__ __forceinline__ float4 load4(const float* from) { return *reinterpret_cast<const float4*>(from); }
__device__ __forceinline__ float4 load4(const __nv_bfloat16* from) {
  const uint2 bits = *reinterpret_cast<const uint2*>(from);
  const float2 a = widen(bits.x), b = widen(bits.y);
  return {a.x, a.y, b.x, b.y};
}

struct Float8 {
  float4 a, b;
};
__device__ __forceinline__ Float8 load8(const float* from) { return {load4(from), load4(from + 4)}; }
__device__ __forceinline__ Float8 load8(const __nv_bfloat16* from) {
  const uint4 bits = *reinterpret_cast<const uint4*>(from);
  const float2 a = widen(bits.x), b = widen(bits.y), c = widen(bits.z), d = widen(bits.w);
  return {{a.x, a.y, b.x, b.y}, {c.x, c.y, d.x, d.y}};
}
__device__ __forceinline__ void store8(const Float8& x, float* to) {
  *reinterpret_cast<float4*>(to) = x.a;
  *reinterpret_cast<float4*>(to + 4) = x.b;
}
__device__ __forceinline__ void store8(const Float8& x, __nv_bfloat16* to) {
  *reinterpret_cast<uint4*>(to) = {narrow(x.a.x, x.a.y), narrow(x.a.z, x.a.w), narrow(x.b.x, x.b.y),
                                   narrow(x.b.z, x.b.w)};
}

/// The first element of a tensor's memory as T; the dtype has been checked.
template <class T>
T* elements(const Tensor& tensor) {
  return reinterpret_cast<T*>(tensor.data);
}

}  // namespace ringlet::cuda
