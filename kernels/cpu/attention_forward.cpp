#include <array>
#include <cmath>
#include <limits>
#include <numbers>

#include "kernels/cpu/attention.h"
#include "kernels/cpu/attention_tiles.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/attention_forward.cpp"
#include <hwy/foreach_target.h>

#include "kernels/cpu/attention_simd.h"
#include "kernels/cpu/simd.h"
#include "kernels/cpu/transpose.h"

HWY_BEFORE_NAMESPACE();
namespace ringlet::cpu::HWY_NAMESPACE {
namespace {

// Stands for -infinity: a difference of two of them is 0, not NaN.
constexpr float kUnseen = -1e30f;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

/// Lanes are queries: everything about a row is a plain vector, and only q and the output are transposed, once a group.
struct ForwardScratch {
  alignas(64) float q[kPanelFloats];  // of a group, transposed, times log2(e) / sqrt(head_dim)
  alignas(64) float output[kPanelFloats];  // transposed
  alignas(64) float maximum[kMaxGroup][kTile];
  alignas(64) float sum[kMaxGroup][kTile];
  alignas(64) float scores[kTile * kTile];  // [keys, queries], then probabilities
  alignas(64) float rescale[kTile];
};

/// The highest of `before` and the scores of a column, in lanes; scores that are not seen become
/// kUnseen.
template <Visible kVisible, class D, class V = hn::Vec<D>>
HWY_INLINE V highest_score(D d, int64_t keys, const SeenBy<kVisible, D>& seen, V before,
                           float* column) {
  V highest[4] = {before, before, before, before};
  for (int64_t key = 0; key < keys; key += 4) {
    HWY_UNROLL(4)
    for (int i = 0; i < 4; ++i) {
      const V score = hn::Load(d, column + (key + i) * kTile);
      highest[i] = hn::Max(seen.select(d, key + i, score, hn::Set(d, kUnseen)), highest[i]);
    }
  }
  return hn::Max(hn::Max(highest[0], highest[1]), hn::Max(highest[2], highest[3]));
}

/// Scores of a column to probabilities relative to `maximum`, 0 where not seen; returns their sum.
template <Visible kVisible, class D, class V = hn::Vec<D>>
HWY_INLINE V weigh(D d, int64_t keys, const SeenBy<kVisible, D>& seen, V maximum, float* column) {
  V sums[4] = {hn::Zero(d), hn::Zero(d), hn::Zero(d), hn::Zero(d)};
  for (int64_t key = 0; key < keys; key += 4) {
    HWY_UNROLL(4)
    for (int i = 0; i < 4; ++i) {
      float* const at = column + (key + i) * kTile;
      const V weight = exp2_of(d, hn::Sub(hn::Load(d, at), maximum));
      const V kept = seen.select(d, key + i, weight, hn::Zero(d));
      hn::Store(kept, d, at);
      sums[i] = hn::Add(sums[i], kept);
    }
  }
  return hn::Add(hn::Add(sums[0], sums[1]), hn::Add(sums[2], sums[3]));
}

/// Turns the scores of one tile into probabilities relative to the new maximum; updates maximum and
/// sum. keys is a multiple of four; queries fill whole vectors.
template <Visible kVisible>
HWY_NOINLINE void softmax_tile(int64_t keys, int64_t queries, const VisibleRows* rows,
                               ForwardScratch& scratch, float* maximum, float* sum) {
  const hn::ScalableTag<float> d;
  for (int64_t lane = 0; lane < queries; lane += int64_t(hn::Lanes(d))) {
    const SeenBy<kVisible, hn::ScalableTag<float>> seen(d, rows, lane);
    float* const column = scratch.scores + lane;
    const auto before = hn::Load(d, maximum + lane);
    const auto now = highest_score(d, keys, seen, before, column);
    const auto total = weigh(d, keys, seen, now, column);
    const auto rescale = exp2_of(d, hn::Sub(before, now));
    hn::Store(now, d, maximum + lane);
    hn::Store(rescale, d, scratch.rescale + lane);
    hn::Store(hn::MulAdd(hn::Load(d, sum + lane), rescale, total), d, sum + lane);
  }
}

/// Folds the keys and values of one KV head, tile by tile, into a group of query tiles.
class ForwardGroup {
 public:
  ForwardGroup(const AttentionStep& step, const Tensor& q, const AttentionState& state,
               ForwardScratch& scratch)
      : head_dim_(step.shape.head_dim),
        rows_(q.shape[1]),
        q_(q.as<float>().data()),
        output_(state.output.as<float>().data()),
        maximum_(state.maximum.as<float>().data()),
        sum_(state.sum.as<float>().data()),
        scratch_(scratch) {}

  void load(const QueryTiles& tiles, int64_t first, int64_t count) {
    count_ = count;
    const float scale = std::numbers::log2e_v<float> / std::sqrt(float(head_dim_));
    for (int64_t i = 0; i < count; ++i) {
      const QueryTile& tile = tiles_[i] = tiles[first + i];
      transpose(q_ + row(tile) * head_dim_, head_dim_, tile.rows.row_count, head_dim_, q(i), kTile, scale);
      transpose(output_ + row(tile) * head_dim_, head_dim_, tile.rows.row_count, head_dim_, output(i), kTile);
      std::fill_n(scratch_.maximum[i], kTile, 0.0f);
      std::fill_n(scratch_.sum[i], kTile, 0.0f);
      for (int64_t lane = 0; lane < tile.rows.row_count; ++lane) {
        const float maximum = maximum_[row(tile) + lane];
        scratch_.maximum[i][lane] = maximum == -kInfinity ? kUnseen : maximum;
        scratch_.sum[i][lane] = sum_[row(tile) + lane];
      }
    }
  }

  int64_t lowest_visible() const { return tiles_[0].lowest_visible(); }
  int64_t last_position() const { return tiles_[count_ - 1].rows.last_position(); }

  /// The `next_rows` rows before `k` and `v` are folded next.
  void fold(const Piece& keys, const float* k, const float* v, int64_t next_rows) {
    ahead_ = Ahead<2>({k, v}, next_rows * head_dim_, count_, head_dim_);
    for (int64_t i = 0; i < count_; ++i) {
      const Visible visible = visibility(tiles_[i], keys);
      if (visible != Visible::none) fold_tile(i, visible, keys, k, v);
    }
  }

  void store() {
    for (int64_t i = 0; i < count_; ++i) {
      transpose(output(i), kTile, head_dim_, tiles_[i].rows.row_count, output_ + row(tiles_[i]) * head_dim_, head_dim_);
      for (int64_t lane = 0; lane < tiles_[i].rows.row_count; ++lane) {
        const float sum = scratch_.sum[i][lane];
        maximum_[row(tiles_[i]) + lane] = sum == 0 ? -kInfinity : scratch_.maximum[i][lane];
        sum_[row(tiles_[i]) + lane] = sum;
      }
    }
  }

 private:
  int64_t row(const QueryTile& tile) const { return tile.head * rows_ + tile.row; }
  float* q(int64_t i) const { return scratch_.q + i * kTile * head_dim_; }
  float* output(int64_t i) const { return scratch_.output + i * kTile * head_dim_; }

  void fold_tile(int64_t i, Visible visible, const Piece& keys, const float* k, const float* v) {
    const int64_t queries = tiles_[i].rows.row_count, columns = whole_vectors(queries);
    const int64_t key_count = keys.row_count;
    multiply<Left::plain>({key_count, columns, head_dim_}, {k, head_dim_}, {q(i), kTile},
                          {scratch_.scores, kTile}, SetResult{}, ahead_);
    float* const maximum = scratch_.maximum[i];
    float* const sum = scratch_.sum[i];
    if (visible == Visible::all && key_count % 4 == 0) {
      softmax_tile<Visible::all>(key_count, columns, nullptr, scratch_, maximum, sum);
    } else {
      // Nobody sees the keys that round the count up to four.
      const VisibleRows rows(tiles_[i], keys);
      softmax_tile<Visible::some>((key_count + 3) / 4 * 4, columns, &rows, scratch_, maximum, sum);
    }
    multiply<Left::transposed>({head_dim_, columns, key_count}, {v, head_dim_}, {scratch_.scores, kTile},
                               {output(i), kTile}, RescaleAndAdd{scratch_.rescale}, ahead_);
  }

  int64_t head_dim_, rows_;
  const float* q_;
  float *output_, *maximum_, *sum_;
  ForwardScratch& scratch_;
  std::array<QueryTile, kMaxGroup> tiles_;
  int64_t count_ = 0;
  Ahead<2> ahead_;
};

/// Folds all keys of a KV head into one group of query tiles.
void forward(const AttentionStep& step, const Tensor& q, const Tensor& kv,
             const AttentionState& state, int64_t kv_head, int64_t group_index) {
  ForwardScratch scratch;
  ForwardGroup group(step, q, state, scratch);
  const auto [heads, kv_heads, head_dim] = step.shape;
  const float* const k = kv.as<float>().data();
  const float* const v = k + kv_heads * step.keys.row_count * head_dim;
  const QueryTiles tiles(step, kv_head);
  const int64_t first = group_index * group_size(head_dim);
  group.load(tiles, first, std::min(group_size(head_dim), tiles.count() - first));
  const Range seen = tiles_between(step.keys, group.lowest_visible(), group.last_position());
  for (int64_t tile = seen.end - 1; tile >= seen.begin; --tile) {
    const Piece keys = tile_at(step.keys, tile);
    const int64_t next_rows = tile > seen.begin ? tile_at(step.keys, tile - 1).row_count : 0;
    const int64_t offset = (kv_head * step.keys.row_count + keys.first_row) * head_dim;
    group.fold(keys, k + offset, v + offset, next_rows);
  }
  group.store();
}

void finish(const HeadShape& shape, const AttentionState& state, const Tensor& output,
            const Tensor& lse) {
  const hn::CappedTag<float, 8> d;
  const int64_t rows = output.rows(), head_dim = shape.head_dim;
  const float* const sums = state.sum.as<float>().data();
  const float* const maxima = state.maximum.as<float>().data();
  for (int64_t head = 0; head < shape.heads; ++head) {
    const float* from = state.output.as<float>().data() + head * rows * head_dim;
    for (int64_t row = 0; row < rows; ++row, from += head_dim) {
      const int64_t i = head * rows + row;
      float* const to = output.row<float>(row) + head * head_dim;
      const auto divisor = hn::Set(d, sums[i] == 0 ? 1.0f : sums[i]);
      for (int64_t x = 0; x < head_dim; x += int64_t(hn::Lanes(d))) {
        hn::StoreU(hn::Div(hn::LoadU(d, from + x), divisor), d, to + x);
      }
      lse.as<float>()[i] =
          float(std::numbers::ln2 * (double(maxima[i]) + std::log2(double(sums[i]))));
    }
  }
}

}  // namespace
}  // namespace ringlet::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace ringlet::cpu {

HWY_EXPORT(forward);
HWY_EXPORT(finish);

void attention_forward(ThreadTeam& team, const AttentionStep& step, const Tensor& q, const Tensor& kv,
                       const AttentionState& state) {
  if (step.queries.row_count == 0 || step.keys.row_count == 0) return;
  const int64_t kv_heads = step.shape.kv_heads, groups = group_count(step);
  // The last queries see the most keys: they go first, so that threads end together.
  team.run(kv_heads * groups, [&](int64_t task) {
    HWY_DYNAMIC_DISPATCH(forward)
    (step, q, kv, state, task % kv_heads, groups - 1 - task / kv_heads);
  });
}

void attention_finish(const HeadShape& shape, const AttentionState& state, const Tensor& output,
                      const Tensor& lse) {
  HWY_DYNAMIC_DISPATCH(finish)(shape, state, output, lse);
}

}  // namespace ringlet::cpu
#endif
