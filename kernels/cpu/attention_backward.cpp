#include <array>
#include <cmath>
#include <limits>
#include <numbers>

#include "kernels/cpu/attention.h"
#include "kernels/cpu/attention_tiles.h"
#include "kernels/cpu/key_progress.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/attention_backward.cpp"
#include <hwy/foreach_target.h>

#include "kernels/cpu/attention_simd.h"
#include "kernels/cpu/simd.h"
#include "kernels/cpu/transpose.h"

HWY_BEFORE_NAMESPACE();
namespace ringlet::cpu::HWY_NAMESPACE {
namespace {

/// As in the forward pass, lanes are queries. d_output rows of a head lie far apart and are packed
/// as well.
struct BackwardScratch {
  alignas(64) float q[kPanelFloats];  // transposed, times log2(e) / sqrt(head_dim)
  alignas(64) float d_output_transposed[kPanelFloats];
  alignas(64) float d_output[kPanelFloats];
  alignas(64) float dq[kPanelFloats];  // transposed
  alignas(64) float lse[kMaxGroup][kTile];  // times log2(e)
  alignas(64) float delta[kMaxGroup][kTile];
  alignas(64) float weights[kTile * kTile];   // [keys, queries]: scores, then probabilities
  alignas(64) float d_scores[kTile * kTile];  // d weights, then d scores
};

/// Scores and d weights of one tile to weights and d scores, in place.
template <Visible kVisible>
HWY_NOINLINE void differentiate_tile(int64_t keys, int64_t queries, const VisibleRows* rows,
                                     const float* lse, const float* delta,
                                     BackwardScratch& scratch) {
  const hn::ScalableTag<float> d;
  for (int64_t lane = 0; lane < queries; lane += int64_t(hn::Lanes(d))) {
    const SeenBy<kVisible, hn::ScalableTag<float>> seen(d, rows, lane);
    const auto lse_of_row = hn::Load(d, lse + lane), delta_of_row = hn::Load(d, delta + lane);
    HWY_UNROLL(4)
    for (int64_t key = 0; key < keys; ++key) {
      float* const weight_at = scratch.weights + key * kTile + lane;
      float* const d_score_at = scratch.d_scores + key * kTile + lane;
      const auto all = exp2_of(d, hn::Sub(hn::Load(d, weight_at), lse_of_row));
      const auto weight = seen.select(d, key, all, hn::Zero(d));
      hn::Store(weight, d, weight_at);
      hn::Store(hn::Mul(weight, hn::Sub(hn::Load(d, d_score_at), delta_of_row)), d, d_score_at);
    }
  }
}

/// A tile of keys and values of one KV head, and where its gradients go.
struct KeyTile {
  Piece rows;
  const float *k, *v;
  float *dk, *dv;
};

/// Adds the part of a group of query tiles to dq and to the gradients of one tile of keys and
/// values at a time.
class BackwardGroup {
 public:
  BackwardGroup(const AttentionStep& step, const Tensor& q, const AttentionGradient& gradient,
                const Tensor& dq, BackwardScratch& scratch)
      : head_dim_(step.shape.head_dim),
        rows_(q.shape[1]),
        q_(q.as<float>().data()),
        dq_(dq.as<float>().data()),
        gradient_(gradient),
        scratch_(scratch) {}

  void load(const QueryTiles& tiles, int64_t first, int64_t count) {
    count_ = count;
    for (int64_t i = 0; i < count; ++i) {
      tiles_[i] = tiles[first + i];
      load_tile(i);
    }
  }

  int64_t lowest_visible() const { return tiles_[0].lowest_visible(); }
  int64_t last_position() const { return tiles_[count_ - 1].rows.last_position(); }

  /// The `next_rows` rows before `keys` are added to next.
  void add(const KeyTile& keys, int64_t next_rows) {
    ahead_ = Ahead<4>({keys.k, keys.v, keys.dk, keys.dv}, next_rows * head_dim_, count_, head_dim_);
    for (int64_t i = 0; i < count_; ++i) {
      const Visible visible = visibility(tiles_[i], keys.rows);
      if (visible != Visible::none) add_tile(i, visible, keys);
    }
  }

  void store() {
    for (int64_t i = 0; i < count_; ++i) {
      transpose(scratch_.dq + panel(i), kTile, head_dim_, tiles_[i].rows.row_count, dq_ + row(tiles_[i]) * head_dim_,
                head_dim_);
    }
  }

 private:
  int64_t row(const QueryTile& tile) const { return tile.head * rows_ + tile.row; }
  int64_t panel(int64_t i) const { return i * kTile * head_dim_; }

  void load_tile(int64_t i) {
    const QueryTile& tile = tiles_[i];
    const int64_t queries = tile.rows.row_count, stride = gradient_.d_output.row_stride;
    const float* const d_output = gradient_.d_output.row<float>(tile.row) + tile.head * head_dim_;
    const float scale = std::numbers::log2e_v<float> / std::sqrt(float(head_dim_));
    transpose(q_ + row(tile) * head_dim_, head_dim_, queries, head_dim_, scratch_.q + panel(i), kTile, scale);
    transpose(dq_ + row(tile) * head_dim_, head_dim_, queries, head_dim_, scratch_.dq + panel(i), kTile);
    transpose(d_output, stride, queries, head_dim_, scratch_.d_output_transposed + panel(i), kTile);
    for (int64_t lane = 0; lane < queries; ++lane) {
      std::copy_n(d_output + lane * stride, head_dim_,
                  scratch_.d_output + panel(i) + lane * head_dim_);
    }
    // A row that saw nothing, and unused lanes, get probability 0 from an endless sum.
    std::fill_n(scratch_.lse[i], kTile, 1e30f);
    std::fill_n(scratch_.delta[i], kTile, 0.0f);
    for (int64_t lane = 0; lane < queries; ++lane) {
      const float lse = gradient_.lse.as<float>()[row(tile) + lane];
      if (lse == -std::numeric_limits<float>::infinity()) continue;
      scratch_.lse[i][lane] = lse * std::numbers::log2e_v<float>;
      scratch_.delta[i][lane] = gradient_.delta.as<float>()[row(tile) + lane];
    }
  }

  void add_tile(int64_t i, Visible visible, const KeyTile& keys) {
    const int64_t queries = tiles_[i].rows.row_count, columns = whole_vectors(queries);
    const int64_t key_count = keys.rows.row_count, n = head_dim_;
    float *const weights = scratch_.weights, *const d_scores = scratch_.d_scores;
    multiply<Left::plain>({key_count, columns, n}, {keys.k, n}, {scratch_.q + panel(i), kTile}, {weights, kTile},
                          SetResult{}, ahead_);
    multiply<Left::plain>({key_count, columns, n}, {keys.v, n}, {scratch_.d_output_transposed + panel(i), kTile},
                          {d_scores, kTile}, SetResult{}, ahead_);
    if (visible == Visible::all) {
      differentiate_tile<Visible::all>(key_count, columns, nullptr, scratch_.lse[i],
                                       scratch_.delta[i], scratch_);
    } else {
      const VisibleRows rows(tiles_[i], keys.rows);
      differentiate_tile<Visible::some>(key_count, columns, &rows, scratch_.lse[i],
                                        scratch_.delta[i], scratch_);
    }
    const float one = 1, scale = 1 / std::sqrt(float(n));
    multiply<Left::plain>({key_count, n, queries}, {weights, kTile}, {scratch_.d_output + panel(i), n}, {keys.dv, n},
                          AddScaled{&one}, ahead_);
    multiply<Left::plain>({key_count, n, queries}, {d_scores, kTile}, {q_ + row(tiles_[i]) * n, n}, {keys.dk, n},
                          AddScaled{&scale}, ahead_);
    multiply<Left::transposed>({n, columns, key_count}, {keys.k, n}, {d_scores, kTile}, {scratch_.dq + panel(i), kTile},
                               AddScaled{&scale}, ahead_);
  }

  int64_t head_dim_, rows_;
  const float* q_;
  float* dq_;
  const AttentionGradient& gradient_;
  BackwardScratch& scratch_;
  std::array<QueryTile, kMaxGroup> tiles_;
  int64_t count_ = 0;
  Ahead<4> ahead_;
};

/// The part of one group of query tiles in all gradients of a KV head. Gradients of keys are
/// summed in the order of the groups, those of queries in the order of the tiles, whoever computes
/// them: `before` is how far down the group before this one has come, `own` how far this one.
void backward(const AttentionStep& step, const Tensor& q, const Tensor& kv,
              const AttentionGradient& gradient, const Tensor& dq, const Tensor& dkv,
              int64_t kv_head, int64_t group_index, const KeyProgress& before, KeyProgress& own) {
  BackwardScratch scratch;
  BackwardGroup group(step, q, gradient, dq, scratch);
  const auto [heads, kv_heads, head_dim] = step.shape;
  const float* const k = kv.as<float>().data();
  float* const dk = dkv.as<float>().data();
  const int64_t values = kv_heads * step.keys.row_count * head_dim;
  const QueryTiles tiles(step, kv_head);
  const int64_t first = group_index * group_size(head_dim);
  group.load(tiles, first, std::min(group_size(head_dim), tiles.count() - first));
  const Range seen = tiles_between(step.keys, group.lowest_visible(), group.last_position());
  for (int64_t tile = seen.end - 1; tile >= seen.begin; --tile) {
    const Piece rows = tile_at(step.keys, tile);
    const int64_t next_rows = tile > seen.begin ? tile_at(step.keys, tile - 1).row_count : 0;
    const int64_t at = (kv_head * step.keys.row_count + rows.first_row) * head_dim;
    before.wait_until_below(tile + 1);
    group.add({rows, k + at, k + values + at, dk + at, dk + values + at}, next_rows);
    own.come_to(tile);
  }
  group.store();
  // Whoever waits for this group waits for those before it, also where it has added nothing.
  if (seen.begin >= seen.end) before.wait_until_done();
}

void row_dots(const HeadShape& shape, const Tensor& output, const Tensor& d_output,
              const Tensor& delta) {
  const hn::CappedTag<float, 8> d;
  const int64_t rows = output.rows();
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t head = 0; head < shape.heads; ++head) {
      const float* const a = output.row<float>(row) + head * shape.head_dim;
      const float* const b = d_output.row<float>(row) + head * shape.head_dim;
      auto sum = hn::Zero(d);
      for (int64_t x = 0; x < shape.head_dim; x += int64_t(hn::Lanes(d))) {
        sum = hn::MulAdd(hn::LoadU(d, a + x), hn::LoadU(d, b + x), sum);
      }
      delta.as<float>()[head * rows + row] = hn::GetLane(hn::SumOfLanes(d, sum));
    }
  }
}

}  // namespace
}  // namespace ringlet::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace ringlet::cpu {

HWY_EXPORT(backward);
HWY_EXPORT(row_dots);

void attention_delta(const HeadShape& shape, const Tensor& output, const Tensor& d_output,
                     const Tensor& delta) {
  HWY_DYNAMIC_DISPATCH(row_dots)(shape, output, d_output, delta);
}

void attention_backward(ThreadTeam& team, std::span<int64_t> progress, const AttentionStep& step, const Tensor& q,
                        const Tensor& kv, const AttentionGradient& gradient, const Tensor& dq, const Tensor& dkv) {
  if (step.queries.row_count == 0 || step.keys.row_count == 0) return;
  const int64_t kv_heads = step.shape.kv_heads, groups = group_count(step);
  const int64_t most = std::ssize(progress) / kv_heads - 1;  // groups at a time
  CHECK(most >= 1, kv_heads, " KV heads, room for ", progress.size());
  for (int64_t first = 0; first < groups; first += most) {
    const int64_t tasks = kv_heads * std::min(most, groups - first);
    std::fill_n(progress.begin(), kv_heads, KeyProgress::kDone);  // before the first groups: nobody
    std::fill_n(progress.begin() + kv_heads, tasks, KeyProgress::kNothing);
    // Group by group, the KV heads side by side: the group before has been begun, and mostly ended.
    team.run(tasks, [&](int64_t task) {
      const KeyProgress before(progress[size_t(task)]);
      KeyProgress own(progress[size_t(task + kv_heads)]);
      const DoneAtEnd done(own);  // also when it throws: others wait for it
      HWY_DYNAMIC_DISPATCH(backward)
      (step, q, kv, gradient, dq, dkv, task % kv_heads, first + task / kv_heads, before, own);
    });
  }
}

}  // namespace ringlet::cpu
#endif
