#include "kernels/cpu/matmul.h"

#include <algorithm>

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

/// out [rows, columns] = or += a [rows, depth] * b [depth, columns]: a part of the whole, none of
/// it empty.
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

/// Rows of the result that one task computes at most: with kMatmulDepth columns of `a` they stay in
/// the L2 cache.
constexpr int64_t kTaskRows = 96;

}  // namespace
}  // namespace ringlet::cpu
#endif

HWY_BEFORE_NAMESPACE();
namespace ringlet::cpu::HWY_NAMESPACE {
namespace {

// A block of sums fills the registers: 12 x 2 vectors of 32, or of 16 on AVX2 3 x 4 (few instructions for a
// multiply-add, which are what is scarce with another thread on the same core; see multiply_step), else 6 x 2.
constexpr bool kAvx2 = HWY_TARGET == HWY_AVX2;
constexpr int kBlockRows = kManyRegisters ? 12 : kAvx2 ? 3 : 6;
constexpr int kBlockVectors = kAvx2 ? 4 : 2, kHeldVectors = kAvx2 ? 3 : 2;
// Steps of the sum at a time: one where a product needs a register of its own before it is added.
constexpr int kSteps = kManyRegisters || kAvx2 ? 2 : 1;
static_assert(kTaskRows % kBlockRows == 0);

HWY_INLINE int64_t panel_columns() { return kBlockVectors * float_lanes(); }

/// Steps of the sum that are packed at a time where each of them is a row: few, read from left to
/// right. Of a left operand fewer: its rows may be as wide as the vocabulary, a power of two, and
/// then meet in the same places of the cache.
constexpr int64_t kRightStrip = 16, kLeftStrip = 8;

/// Rows of op(a): where they are, the steps of the sum side by side, or packed, those of a block side by side.
enum class Rows : uint8_t { in_place, packed };

/// kRows x kBlockVectors vectors of the result; `right` is packed, a row of the block per step. Not inlined: the
/// compiler would keep sums in memory.
template <Rows kLeft, int kRows>
HWY_NOINLINE void multiply_block(const float* a, int64_t a_row_step, const float* HWY_RESTRICT right, int64_t depth,
                                 bool add, float* out, int64_t out_stride) {
  const Floats d;
  const int64_t lanes = float_lanes(), width = kBlockVectors * lanes;
  const int64_t row_step = kLeft == Rows::packed ? 1 : a_row_step;
  constexpr int64_t kDepthStep = kLeft == Rows::packed ? kBlockRows : 1;
  // The result is used once a block of the sum: it arrives while the sums are made.
  HWY_UNROLL(16)
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kBlockVectors; ++v) __builtin_prefetch(out + r * out_stride + v * lanes, 1);
  }
  FloatVector sums[kRows][kBlockVectors];
  HWY_UNROLL(16)
  for (int r = 0; r < kRows; ++r) {
    HWY_UNROLL(16)
    for (int v = 0; v < kBlockVectors; ++v) sums[r][v] = hn::Zero(d);
  }
  for (; kSteps == 2 && depth >= 2; depth -= 2, a += 2 * kDepthStep, right += 2 * width) {
    multiply_step<kRows, kBlockVectors, kHeldVectors>(d, a, row_step, right, sums);
    multiply_step<kRows, kBlockVectors, kHeldVectors>(d, a + kDepthStep, row_step, right + width, sums);
  }
  for (; depth > 0; --depth, a += kDepthStep, right += width) {
    multiply_step<kRows, kBlockVectors, kHeldVectors>(d, a, row_step, right, sums);
  }
  HWY_UNROLL(16)
  for (int r = 0; r < kRows; ++r, out += out_stride) {
    HWY_UNROLL(16)
    for (int v = 0; v < kBlockVectors; ++v) {
      float* const to = out + v * lanes;
      hn::StoreU(add ? hn::Add(hn::LoadU(d, to), sums[r][v]) : sums[r][v], d, to);
    }
  }
}

/// Fewer than 2 * kRows rows.
template <Rows kLeft, int kRows>
HWY_INLINE void multiply_rows(const float* a, int64_t a_row_step, int64_t rows, const float* right, int64_t depth,
                              bool add, float* out, int64_t out_stride) {
  if (rows >= kRows) {
    multiply_block<kLeft, kRows>(a, a_row_step, right, depth, add, out, out_stride);
    a += kRows * a_row_step;
    out += kRows * out_stride;
    rows -= kRows;
  }
  if constexpr (kRows > 1) {
    constexpr int kFewer = kRows > 8 ? 8 : kRows > 4 ? 4 : (kRows + 1) / 2;
    if (rows > 0) multiply_rows<kLeft, kFewer>(a, a_row_step, rows, right, depth, add, out, out_stride);
  }
}

/// Packs the panels [first_panel, end_panel) of op(b) of one block of the sum, each panel_columns()
/// wide, step by step of the sum; what the last panel lacks is 0.
void pack_right(const Product& p, int64_t first_panel, int64_t end_panel, float* panels) {
  const int64_t width = panel_columns(), panel_floats = width * p.depth;
  if (p.b_column_step != 1) {
    for (int64_t panel = first_panel; panel < end_panel; ++panel) {
      const int64_t first = panel * width;
      transpose(p.b + first * p.b_column_step, p.b_column_step, std::min(width, p.columns - first),
                p.depth, panels + panel * panel_floats, width);
    }
    return;
  }
  for (int64_t strip = 0; strip < p.depth; strip += kRightStrip) {
    const int64_t end = std::min(strip + kRightStrip, p.depth);
    for (int64_t panel = first_panel; panel < end_panel; ++panel) {
      const int64_t columns = p.columns - panel * width;
      const float* from = p.b + strip * p.b_depth_step + panel * width;
      float* to = panels + panel * panel_floats + strip * width;
      for (int64_t k = strip; k < end; ++k, from += p.b_depth_step, to += width) {
        for (int64_t i = 0; i < width; i += float_lanes()) {
          hn::Store(columns > i ? load(from + i, columns - i) : hn::Zero(Floats()), Floats(),
                    to + i);
        }
      }
    }
  }
}

/// Packs `steps` steps of a transposed left operand for one block of rows, which stand side by
/// side. kWhole: whole vectors are read and written, beyond the rows where kBlockRows asks for it.
template <bool kWhole>
HWY_INLINE void pack_steps(const float* from, int64_t depth_step, int64_t rows, int64_t steps,
                           float* to) {
  const hn::CappedTag<float, 4> d;
  for (int64_t k = 0; k < steps; ++k, from += depth_step, to += kBlockRows) {
    if constexpr (kWhole) {
      for (int64_t i = 0; i < kBlockRows; i += int64_t(hn::Lanes(d)))
        hn::StoreU(hn::LoadU(d, from + i), d, to + i);
    } else {
      std::copy_n(from, rows, to);
    }
  }
}

/// Packs rows of a transposed left operand, block by block.
void pack_left(const Product& p, int64_t first_row, int64_t rows, float* to) {
  constexpr int64_t kRead = (kBlockRows + 3) / 4 * 4;
  for (int64_t strip = 0; strip < p.depth; strip += kLeftStrip) {
    // What a step writes beyond its rows, the next one overwrites; the last step of the sum would
    // spoil the next block.
    const int64_t steps = std::min(kLeftStrip, p.depth - strip),
                  last = strip + steps == p.depth ? 1 : 0;
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

/// Fetches rows into the cache a few at a time, while something else is computed.
class Prefetch {
 public:
  /// `columns` of each of `rows` rows, in at most `calls` calls.
  Prefetch(const float* from, int64_t row_step, int64_t rows, int64_t columns, int64_t calls)
      : next_(from), row_step_(row_step), rows_(rows), columns_(columns),
        rows_a_call_((rows + calls - 1) / calls) {}

  HWY_INLINE void go_on() {
    if (rows_ <= 0) return;
    for (int64_t row = 0; row < rows_a_call_; ++row, next_ += row_step_) {
      for (int64_t i = 0; i < columns_; i += kLineFloats) __builtin_prefetch(next_ + i, 0, 2);
    }
    rows_ -= rows_a_call_;
  }

 private:
  static constexpr int64_t kLineFloats = 16;
  const float* next_;
  int64_t row_step_, rows_, columns_, rows_a_call_;
};

void copy_block(const float* from, int64_t from_stride, int64_t rows, int64_t columns, float* to, int64_t to_stride) {
  for (int64_t row = 0; row < rows; ++row) {
    std::copy_n(from + row * from_stride, columns, to + row * to_stride);
  }
}

/// Rows [first_row, + rows) of the panels [first_panel, end_panel) of one block of the sum, which
/// has a next one of `next_depth` steps.
template <Rows kLeft>
void multiply_part(const Product& p, const float* panels, int64_t first_row, int64_t rows, int64_t first_panel,
                   int64_t end_panel, int64_t next_depth) {
  constexpr bool kPacked = kLeft == Rows::packed;
  HWY_ALIGN float packed[kPacked ? kTaskRows * kMatmulDepth : 1];
  if constexpr (kPacked) pack_left(p, first_row, rows, packed);
  const int64_t width = panel_columns();
  // What lies row by row of the sum is packed from short stretches, which the processor does not
  // foresee: those of the next block arrive while this one is computed.
  Prefetch next(p.a + first_row + p.depth * p.a_depth_step, p.a_depth_step, kPacked ? next_depth : 0, rows,
                (end_panel - first_panel) * ((rows + kBlockRows - 1) / kBlockRows));
  // The last panel may be narrower than a block, which stores whole vectors: with stores of parts the compiler spills
  // sums of the inner loop.
  float narrow[kBlockRows * kBlockVectors * HWY_MAX_BYTES / sizeof(float)] = {};
  for (int64_t panel = first_panel; panel < end_panel; ++panel) {
    const float* const right = panels + panel * width * p.depth;
    const int64_t columns = std::min(width, p.columns - panel * width);
    for (int64_t row = 0; row < rows; row += kBlockRows) {
      next.go_on();
      const float* const left = kPacked ? packed + row * p.depth : p.a + (first_row + row) * p.a_row_step;
      const int64_t block_rows = std::min<int64_t>(kBlockRows, rows - row);
      float* const out = p.out + (first_row + row) * p.out_stride + panel * width;
      const bool whole = columns == width;
      if (!whole && p.add) copy_block(out, p.out_stride, block_rows, columns, narrow, width);
      multiply_rows<kLeft, kBlockRows>(left, p.a_row_step, block_rows, right, p.depth, p.add, whole ? out : narrow,
                                       whole ? p.out_stride : width);
      if (!whole) copy_block(narrow, width, block_rows, columns, out, p.out_stride);
    }
  }
}

/// The same of all blocks of the sum, whose panels stand one after the other.
void multiply_task(const Product& p, const float* panels, int64_t panel_count, int64_t first_row,
                   int64_t rows, int64_t first_panel, int64_t end_panel) {
  for (int64_t i = 0; i < p.depth_blocks(); ++i) {
    const int64_t after = p.depth - (i + 1) * kMatmulDepth;
    const auto part = p.a_depth_step == 1 ? multiply_part<Rows::in_place> : multiply_part<Rows::packed>;
    part(p.depth_block(i), panels + i * kMatmulDepth * panel_count * panel_columns(), first_row, rows, first_panel,
         end_panel, std::clamp<int64_t>(after, 0, kMatmulDepth));
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
HWY_EXPORT(multiply_task);
HWY_EXPORT(block_rows);
HWY_EXPORT(panel_width);

constexpr int64_t kWidestPanel = 128;     // panels of all instruction sets divide it
constexpr int64_t kNearFloats = 1 << 17;  // half a MiB: an L2 cache
constexpr int64_t kSmallProduct =
    1 << 17;  // multiply-adds below which waking threads costs more than it gives

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

/// A part of the columns and of the sum whose packed right operand fits the panels.
void multiply(ThreadTeam& team, float* panels, const Product& p) {
  const int64_t width = HWY_DYNAMIC_DISPATCH(panel_width)(),
                unit = HWY_DYNAMIC_DISPATCH(block_rows)();
  const int64_t panel_count = ceil_div(p.columns, width);
  const bool small = p.rows * p.columns * p.depth < kSmallProduct;
  const int64_t threads = small ? 1 : team.size();
  const auto run = [&](int64_t count, const auto& body) {
    if (!small) return team.run(count, body);
    for (int64_t task = 0; task < count; ++task) body(task);
  };
  // Two tasks a thread even out what else the machine does.
  const int64_t fewest_tasks = threads > 1 ? 2 * threads : 1;
  const int64_t pack_parts = std::min(ceil_div(fewest_tasks, p.depth_blocks()), panel_count);
  run(p.depth_blocks() * pack_parts, [&](int64_t task) {
    const int64_t block = task / pack_parts, part = task % pack_parts;
    HWY_DYNAMIC_DISPATCH(pack_right)
    (p.depth_block(block), part * panel_count / pack_parts, (part + 1) * panel_count / pack_parts,
     panels + block * kMatmulDepth * panel_count * width);
  });
  // Rows are shared out before columns, in whole blocks, and every thread gets as many.
  const int64_t blocks = ceil_div(p.rows, unit);
  const int64_t fewest = std::max(ceil_div(p.rows, kTaskRows), fewest_tasks);
  const int64_t row_tasks = std::min(blocks, ceil_div(fewest, threads) * threads);
  const int64_t column_tasks = std::clamp<int64_t>(threads / row_tasks, 1, panel_count);
  // The larger tasks go first: of 5, 6, 5 and 6 blocks one of two threads would get both sixes.
  const auto first_row_of = [&](int64_t task) {
    return std::min((task * (blocks / row_tasks) + std::min(task, blocks % row_tasks)) * unit, p.rows);
  };
  run(row_tasks * column_tasks, [&](int64_t task) {
    const int64_t row_task = task / column_tasks, part = task % column_tasks;
    const int64_t first = first_row_of(row_task), end = first_row_of(row_task + 1);
    HWY_DYNAMIC_DISPATCH(multiply_task)
    (p, panels, panel_count, first, end - first, part * panel_count / column_tasks,
     (part + 1) * panel_count / column_tasks);
  });
}

}  // namespace

void matmul(ThreadTeam& team, std::span<float> panels, const Tensor& a, Transpose transpose_a,
            const Tensor& b, Transpose transpose_b, Write write, const Tensor& out) {
  const auto [m, n, k] = shapes::matmul(a, transpose_a, b, transpose_b, out);
  if (m == 0 || n == 0) return;
  if (k == 0) {
    for (int64_t row = 0; row < m && write == Write::set; ++row)
      std::fill_n(out.row<float>(row), n, 0.0f);
    return;
  }
  const bool a_turned = transpose_a == Transpose::yes, b_turned = transpose_b == Transpose::yes;
  const int64_t a_row_step = a_turned ? 1 : a.row_stride,
                a_depth_step = a_turned ? a.row_stride : 1;
  const int64_t b_column_step = b_turned ? b.row_stride : 1,
                b_depth_step = b_turned ? 1 : b.row_stride;
  const int64_t most_columns =
      std::min(int64_t(panels.size()) / kMatmulDepth, ceil_div(n, kWidestPanel) * kWidestPanel);
  // Where the sum is longer than the result has rows (gradients of weights), the result is read
  // again sooner than panels leave the L2 cache.
  const auto there = int64_t(panels.size());
  const int64_t floats = m < k ? std::min(there, kNearFloats) : there;
  const int64_t most_depth =
      std::max<int64_t>(1, floats / (most_columns * kMatmulDepth)) * kMatmulDepth;
  for (int64_t column = 0; column < n; column += most_columns) {
    for (int64_t depth = 0; depth < k; depth += most_depth) {
      multiply(team, panels.data(),
               {m, std::min(most_columns, n - column), std::min(most_depth, k - depth),
                a.row<float>(0) + depth * a_depth_step, a_row_step, a_depth_step,
                b.row<float>(0) + depth * b_depth_step + column * b_column_step, b_depth_step,
                b_column_step, out.row<float>(0) + column, out.row_stride,
                write == Write::add || depth > 0});
    }
  }
}

}  // namespace ringlet::cpu
#endif
