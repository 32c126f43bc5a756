#include "kernels/cpu/matmul.h"

#include <algorithm>
#include <array>
#include <atomic>

#include "kernels/cpu/prefetch.h"
#include "kernels/op_shapes.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/matmul.cpp"
#include <hwy/foreach_target.h>

#include "kernels/cpu/lanes.h"
#include "kernels/cpu/multiply_step.h"
#include "kernels/cpu/simd.h"
#include "kernels/cpu/transpose.h"

#ifndef RINGLET_KERNELS_CPU_MATMUL_TYPES
#define RINGLET_KERNELS_CPU_MATMUL_TYPES
namespace ringlet::cpu {
namespace {

/// out [rows, columns] = or += a [rows, depth] * b [depth, columns]: a part of the whole, none of it empty.
struct Product {
  int64_t rows, columns, depth;
  const float* a;
  int64_t a_row_step, a_depth_step;
  const float* b;
  int64_t b_depth_step, b_column_step;
  float* out;
  int64_t out_stride;
  bool add;

  /// Block `index` of the sum, kMatmulDepth steps; all but the first are added.
  Product depth_block(int64_t index) const {
    const int64_t first = index * kMatmulDepth;
    Product block = *this;
    block.depth = std::min(kMatmulDepth, depth - first);
    block.a += first * a_depth_step;
    block.b += first * b_depth_step;
    block.add = add || index > 0;
    return block;
  }
  int64_t depth_blocks() const { return (depth + kMatmulDepth - 1) / kMatmulDepth; }
};

/// Rows of the result that are computed at a time at most: with kMatmulDepth columns of `a` they stay in the L2 cache.
constexpr int64_t kStripeRows = 96;

}  // namespace
}  // namespace ringlet::cpu
#endif

HWY_BEFORE_NAMESPACE();
namespace ringlet::cpu::HWY_NAMESPACE {
namespace {

// A block of sums fills the registers: 6 x 4 vectors of 32, or of 16 on AVX2 3 x 4, else 6 x 2. It loads little for a
// multiply-add: loads seem to cost power, and so clock (6 x 4 is faster than 12 x 2, whose panels stay in L1), and
// instructions, which are what is scarce with another thread on the same core (see multiply_step).
constexpr bool kAvx2 = HWY_TARGET == HWY_AVX2;
constexpr int kBlockRows = kAvx2 ? 3 : 6, kBlockVectors = kManyRegisters || kAvx2 ? 4 : 2;
// Steps of the sum at a time: one where a product needs a register of its own before it is added.
constexpr int kSteps = kManyRegisters || kAvx2 ? 2 : 1;
static_assert(kStripeRows % kBlockRows == 0);

HWY_INLINE int64_t panel_columns() { return kBlockVectors * float_lanes(); }

/// Steps of the sum that are packed at a time where each of them is a row: few, read from left to right. Of a left operand
/// fewer: its rows may be as wide as the vocabulary, a power of two, and then meet in the same places of the cache.
constexpr int64_t kRightStrip = 16, kLeftStrip = 8;

/// Rows of op(a): where they are, the steps of the sum side by side, or packed, those of a block side by side.
enum class Rows : uint8_t { in_place, packed };

/// kRows x kVectors vectors of the result; `right` is packed, the row of a panel per step. Not inlined: the compiler would
/// keep sums in memory.
template <Rows kLeft, int kRows, int kVectors>
HWY_NOINLINE void multiply_block(const float* a, int64_t a_row_step, const float* HWY_RESTRICT right, int64_t depth,
                                 bool add, float* out, int64_t out_stride) {
  const Floats d;
  const int64_t lanes = float_lanes(), width = panel_columns();
  const int64_t row_step = kLeft == Rows::packed ? 1 : a_row_step;
  constexpr int kHeld = kAvx2 ? std::min(kVectors, 3) : kVectors;
  constexpr int64_t kDepthStep = kLeft == Rows::packed ? kBlockRows : 1;
  // The result is used once a block of the sum: it arrives while the sums are made.
  HWY_UNROLL(16)
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kVectors; ++v) __builtin_prefetch(out + r * out_stride + v * lanes, 1);
  }
  FloatVector sums[kRows][kVectors];
  HWY_UNROLL(16)
  for (int r = 0; r < kRows; ++r) {
    HWY_UNROLL(16)
    for (int v = 0; v < kVectors; ++v) sums[r][v] = hn::Zero(d);
  }
  for (; kSteps == 2 && depth >= 2; depth -= 2, a += 2 * kDepthStep, right += 2 * width) {
    multiply_step<kRows, kVectors, kHeld>(d, a, row_step, right, sums);
    multiply_step<kRows, kVectors, kHeld>(d, a + kDepthStep, row_step, right + width, sums);
  }
  for (; depth > 0; --depth, a += kDepthStep, right += width) {
    multiply_step<kRows, kVectors, kHeld>(d, a, row_step, right, sums);
  }
  HWY_UNROLL(16)
  for (int r = 0; r < kRows; ++r, out += out_stride) {
    HWY_UNROLL(16)
    for (int v = 0; v < kVectors; ++v) {
      float* const to = out + v * lanes;
      hn::StoreU(add ? hn::Add(hn::LoadU(d, to), sums[r][v]) : sums[r][v], d, to);
    }
  }
}

/// Fewer than 2 * kRows rows.
template <Rows kLeft, int kVectors, int kRows>
void multiply_rows(const float* a, int64_t a_row_step, int64_t rows, const float* right, int64_t depth, bool add,
                   float* out, int64_t out_stride) {
  if (rows >= kRows) {
    multiply_block<kLeft, kRows, kVectors>(a, a_row_step, right, depth, add, out, out_stride);
    a += kRows * a_row_step;
    out += kRows * out_stride;
    rows -= kRows;
  }
  if constexpr (kRows > 1) {
    constexpr int kFewer = kRows > 4 ? 4 : (kRows + 1) / 2;
    if (rows > 0) multiply_rows<kLeft, kVectors, kFewer>(a, a_row_step, rows, right, depth, add, out, out_stride);
  }
}

/// Packs op(b) of one block of the sum into panels of panel_columns(), step by step; what the last panel lacks is 0.
void pack_right(const Product& p, int64_t panel_count, float* panels) {
  const int64_t width = panel_columns(), panel_floats = width * p.depth;
  if (p.b_column_step != 1) {
    for (int64_t panel = 0; panel < panel_count; ++panel) {
      const int64_t first = panel * width;
      transpose(p.b + first * p.b_column_step, p.b_column_step, std::min(width, p.columns - first), p.depth,
                panels + panel * panel_floats, width);
    }
    return;
  }
  for (int64_t strip = 0; strip < p.depth; strip += kRightStrip) {
    const int64_t end = std::min(strip + kRightStrip, p.depth);
    for (int64_t panel = 0; panel < panel_count; ++panel) {
      const int64_t columns = p.columns - panel * width;
      const float* from = p.b + strip * p.b_depth_step + panel * width;
      float* to = panels + panel * panel_floats + strip * width;
      for (int64_t k = strip; k < end; ++k, from += p.b_depth_step, to += width) {
        for (int64_t i = 0; i < width; i += float_lanes()) {
          hn::Store(columns > i ? load(from + i, columns - i) : hn::Zero(Floats()), Floats(), to + i);
        }
      }
    }
  }
}

/// Packs `steps` steps of a transposed left operand for one block of rows, which stand side by side. kWhole: whole vectors
/// are read and written, beyond the rows where kBlockRows asks for it.
template <bool kWhole>
HWY_INLINE void pack_steps(const float* from, int64_t depth_step, int64_t rows, int64_t steps, float* to) {
  const hn::CappedTag<float, (kBlockRows > 4 ? 8 : 4)> d;
  for (int64_t k = 0; k < steps; ++k, from += depth_step, to += kBlockRows) {
    if constexpr (kWhole) {
      for (int64_t i = 0; i < kBlockRows; i += int64_t(hn::Lanes(d))) hn::StoreU(hn::LoadU(d, from + i), d, to + i);
    } else {
      std::copy_n(from, rows, to);
    }
  }
}

/// Packs rows of a transposed left operand, block by block.
void pack_left(const Product& p, int64_t first_row, int64_t rows, float* to) {
  constexpr int64_t kRead = kBlockRows > 4 ? 8 : 4;
  for (int64_t strip = 0; strip < p.depth; strip += kLeftStrip) {
    // What a step writes beyond its rows, the next one overwrites; the last step of the sum would spoil the next block.
    const int64_t steps = std::min(kLeftStrip, p.depth - strip), last = strip + steps == p.depth ? 1 : 0;
    for (int64_t row = 0; row < rows; row += kBlockRows) {
      const int64_t count = std::min<int64_t>(kBlockRows, rows - row),
                    whole = rows - row >= kRead ? steps - last : 0;
      const float* const from = p.a + first_row + row + strip * p.a_depth_step;
      float* const block = to + row * p.depth + strip * kBlockRows;
      pack_steps<true>(from, p.a_depth_step, count, whole, block);
      pack_steps<false>(from + whole * p.a_depth_step, p.a_depth_step, count, steps - whole,
                        block + whole * kBlockRows);
    }
  }
}

void copy_block(const float* from, int64_t from_stride, int64_t rows, int64_t columns, float* to, int64_t to_stride) {
  for (int64_t row = 0; row < rows; ++row) {
    std::copy_n(from + row * from_stride, columns, to + row * to_stride);
  }
}

/// A stripe, at most kStripeRows rows, of one block of the sum, which has a next one of `next_depth` steps.
template <Rows kLeft>
void multiply_part(const Product& p, const float* panels, int64_t panel_count, int64_t first_row, int64_t rows,
                   int64_t next_depth) {
  constexpr bool kPacked = kLeft == Rows::packed;
  HWY_ALIGN float packed[kPacked ? kStripeRows * kMatmulDepth : 1];
  if constexpr (kPacked) pack_left(p, first_row, rows, packed);
  const int64_t width = panel_columns();
  // What lies row by row of the sum is packed from short stretches, which the processor does not foresee: those of the
  // next block arrive while this one is computed.
  Prefetch next(p.a + first_row + p.depth * p.a_depth_step, p.a_depth_step, kPacked ? next_depth : 0, rows,
                panel_count * ((rows + kBlockRows - 1) / kBlockRows));
  // The last panel may be narrower than a block, or half a one; both store whole vectors: with stores of parts the compiler
  // spills sums of the inner loop.
  float narrow[kBlockRows * kBlockVectors * HWY_MAX_BYTES / sizeof(float)] = {};
  for (int64_t panel = 0; panel < panel_count; ++panel) {
    const float* const right = panels + panel * width * p.depth;
    const int64_t columns = std::min(width, p.columns - panel * width);
    const bool wide = columns > width / 2, whole = columns == (wide ? width : width / 2);
    const auto multiply = wide ? multiply_rows<kLeft, kBlockVectors, kBlockRows>
                               : multiply_rows<kLeft, kBlockVectors / 2, kBlockRows>;
    for (int64_t row = 0; row < rows; row += kBlockRows) {
      next.go_on();
      const float* const left = kPacked ? packed + row * p.depth : p.a + (first_row + row) * p.a_row_step;
      const int64_t block_rows = std::min<int64_t>(kBlockRows, rows - row);
      float* const out = p.out + (first_row + row) * p.out_stride + panel * width;
      if (!whole && p.add) copy_block(out, p.out_stride, block_rows, columns, narrow, width);
      multiply(left, p.a_row_step, block_rows, right, p.depth, p.add, whole ? out : narrow, whole ? p.out_stride : width);
      if (!whole) copy_block(narrow, width, block_rows, columns, out, p.out_stride);
    }
  }
}

/// The same of all blocks of the sum, whose panels stand one after the other.
void multiply_stripe(const Product& p, const float* panels, int64_t panel_count, int64_t first_row, int64_t rows) {
  for (int64_t i = 0; i < p.depth_blocks(); ++i) {
    const int64_t after = p.depth - (i + 1) * kMatmulDepth;
    const auto part = p.a_depth_step == 1 ? multiply_part<Rows::in_place> : multiply_part<Rows::packed>;
    part(p.depth_block(i), panels + i * kMatmulDepth * panel_count * panel_columns(), panel_count, first_row, rows,
         std::clamp<int64_t>(after, 0, kMatmulDepth));
  }
}

int64_t block_rows() { return kBlockRows; }
int64_t panel_width() { return panel_columns(); }

}  // namespace
}  // namespace ringlet::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace ringlet::cpu {
namespace {

HWY_EXPORT(pack_right);
HWY_EXPORT(multiply_stripe);
HWY_EXPORT(block_rows);
HWY_EXPORT(panel_width);

constexpr int64_t kNearFloats = 1 << 17;              // half a MiB: an L2 cache
constexpr int64_t kSmallProduct = 1 << 17;            // multiply-adds below which waking threads costs more than it gives
constexpr int64_t kMostRowsTaken = 10 * kStripeRows;  // at a time, where panels are packed for them again
constexpr int64_t kGroupColumns = kMatmulPanelFloats / kMatmulDepth;  // of a group at most
constexpr int64_t kMostColumns = 32 * kGroupColumns;                  // of one round
constexpr int64_t kMostCuts = 32, kMostCells = 256;
static_assert(kMostCuts + kMostColumns / kGroupColumns <= kMostCells);
int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

/// Into how many groups of columns threads cut the result, the rows of each shared by several of them: the largest cell
/// takes the fewest cycles, of a step of the sum: 32 multiply-adds in one, a float that is packed, or read in place, in
/// one. A left operand is packed from short stretches, slowly.
int64_t column_cuts(const Product& p, int64_t threads, int64_t block_rows, int64_t width) {
  const int64_t blocks = ceil_div(p.rows, block_rows), panels = ceil_div(p.columns, width);
  const auto cost = [&](int64_t cuts) {
    const int64_t rows = ceil_div(blocks, std::min(threads / cuts, blocks)) * block_rows,
                  columns = ceil_div(panels, cuts) * width;
    return rows * columns / 32 + (p.a_depth_step == 1 ? rows : 3 * rows) + columns;
  };
  int64_t best = 1;
  for (int64_t cuts = 2; cuts <= std::min({threads, kMostCuts, panels}); ++cuts) {
    if (cost(cuts) < cost(best)) best = cuts;
  }
  return best;
}

/// The result in cells, some rows of a group of columns, one or more for each thread; whoever is done early takes what is
/// left of others'. Each thread packs what it needs of the right operand for itself: the first blocks of a panel that
/// another core had just written took up to 1.5 times as long.
class SharedProduct {
 public:
  /// At most kMostColumns columns.
  SharedProduct(const Product& product, int64_t threads)
      : product_(product),
        width_(HWY_DYNAMIC_DISPATCH(panel_width)()),
        block_rows_(HWY_DYNAMIC_DISPATCH(block_rows)()),
        panel_count_(ceil_div(product.columns, width_)),
        block_count_(ceil_div(product.rows, block_rows_)) {
    const int64_t cuts = column_cuts(product, threads, block_rows_, width_);
    groups_ = cuts * ceil_div(ceil_div(panel_count_, cuts), kGroupColumns / width_);
    sharers_ = std::clamp<int64_t>(threads / groups_, 1, std::min(block_count_, kMostCells / groups_));
    const int64_t group_floats = ceil_div(panel_count_, groups_) * width_ * kMatmulDepth;
    // Where the sum is longer than the result has rows (gradients of weights), panels that stay in L2 are worth more than
    // a result that is read less often.
    const int64_t floats = product.rows < product.depth ? kNearFloats : kMatmulPanelFloats;
    packed_depth_ = std::max<int64_t>(1, floats / group_floats) * kMatmulDepth;
    // Few rows at a time even out what else the machine does, where panels need not be packed for each again. Nor should a
    // thread pack a group for the last rows of another.
    rows_taken_ = groups_ % threads == 0 ? product.rows : packs_once() ? kStripeRows : kMostRowsTaken;
  }

  /// What thread `index` does, with panels of its own.
  void work(int64_t index, float* panels, const ThreadTeam& team) {
    const int64_t cells = groups_ * sharers_;
    int64_t packed_group = -1;
    for (int64_t i = 0; i < cells; ++i) {
      const int64_t cell = (index + i) % cells, group = cell / sharers_, sharer = cell % sharers_;
      const int64_t begin = first_row(sharer), end = first_row(sharer + 1);
      for (int64_t row; (row = begin + taken_[size_t(cell)].fetch_add(rows_taken_, std::memory_order_relaxed)) < end;) {
        multiply(group, row, std::min(row + rows_taken_, end), panels, packed_group == group, team);
        packed_group = packs_once() ? group : -1;
      }
    }
  }

 private:
  bool packs_once() const { return product_.depth <= packed_depth_; }
  int64_t first_row(int64_t sharer) const {
    return std::min(sharer * block_count_ / sharers_ * block_rows_, product_.rows);
  }

  /// Rows [row, end_row) of a group; packed: its panels, of the whole sum, are there already.
  void multiply(int64_t group, int64_t row, int64_t end_row, float* panels, bool packed, const ThreadTeam& team) const {
    const int64_t first_panel = group * panel_count_ / groups_, column = first_panel * width_,
                  count = (group + 1) * panel_count_ / groups_ - first_panel;
    for (int64_t depth = 0; depth < product_.depth; depth += packed_depth_) {
      Product part = product_;
      part.columns = std::min(count * width_, product_.columns - column);
      part.depth = std::min(packed_depth_, product_.depth - depth);
      part.a += depth * product_.a_depth_step;
      part.b += depth * product_.b_depth_step + column * product_.b_column_step;
      part.out += column;
      part.add = product_.add || depth > 0;
      for (int64_t i = 0; !packed && i < part.depth_blocks(); ++i) {
        HWY_DYNAMIC_DISPATCH(pack_right)(part.depth_block(i), count, panels + i * kMatmulDepth * count * width_);
      }
      for (int64_t first = row; first < end_row; first += kStripeRows) {
        HWY_DYNAMIC_DISPATCH(multiply_stripe)(part, panels, count, first, std::min(kStripeRows, end_row - first));
        team.show_life();
      }
    }
  }

  const Product product_;
  const int64_t width_, block_rows_, panel_count_, block_count_;  // a panel's columns, a block's rows; how many there are
  int64_t groups_, sharers_;                                      // groups of columns, threads that share the rows of each
  int64_t packed_depth_;                                          // steps of the sum that are packed at a time
  int64_t rows_taken_;                                            // at a time
  std::array<std::atomic<int64_t>, kMostCells> taken_{};          // rows of each cell
};

}  // namespace

void matmul(ThreadTeam& team, std::span<float> panels, const Tensor& a, Transpose transpose_a,
            const Tensor& b, Transpose transpose_b, Write write, const Tensor& out) {
  const auto [m, n, k] = shapes::matmul(a, transpose_a, b, transpose_b, out);
  if (m == 0 || n == 0) return;
  if (k == 0) {
    for (int64_t row = 0; row < m && write == Write::set; ++row) std::fill_n(out.row<float>(row), n, 0.0f);
    return;
  }
  const bool a_turned = transpose_a == Transpose::yes, b_turned = transpose_b == Transpose::yes;
  const int64_t a_row_step = a_turned ? 1 : a.row_stride, a_depth_step = a_turned ? a.row_stride : 1,
                b_column_step = b_turned ? b.row_stride : 1, b_depth_step = b_turned ? 1 : b.row_stride;
  const int64_t threads = m * n * k < kSmallProduct ? 1 : team.size();
  CHECK(std::ssize(panels) >= threads * kMatmulPanelFloats, panels.size(), " floats for ", threads, " threads");
  for (int64_t column = 0; column < n; column += kMostColumns) {
    SharedProduct product({m, std::min(kMostColumns, n - column), k, a.row<float>(0), a_row_step, a_depth_step,
                           b.row<float>(0) + column * b_column_step, b_depth_step, b_column_step,
                           out.row<float>(0) + column, out.row_stride, write == Write::add},
                          threads);
    team.run(threads, [&](int64_t index) { product.work(index, panels.data() + index * kMatmulPanelFloats, team); });
  }
}

}  // namespace ringlet::cpu
#endif
