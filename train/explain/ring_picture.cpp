#include "train/explain/ring_picture.h"

#include <algorithm>
#include <numeric>

namespace ringlet {

RingWork& RingWork::operator+=(const RingWork& other) {
  pairs += other.pairs;
  block_pairs += other.block_pairs;
  skipped_pairs += other.skipped_pairs;
  kv_tokens += other.kv_tokens;
  gradient_tokens += other.gradient_tokens;
  return *this;
}

RingPicture::RingPicture(Layout layout_name, int64_t length, int size, const Mask& ring_mask, int pieces)
    : name(layout_name),
      mask(ring_mask),
      layout(make_layout(layout_name, length, size, pieces)),
      schedule(layout, mask),
      runs_(layout.ranks.size()),
      of_ranks_(size_t(size)),
      of_hops_(size_t(size)),
      largest_pairs_(size_t(size)) {
  std::ranges::transform(layout.ranks, runs_.begin(), [](const std::vector<Piece>& held) { return joined(held); });
  for (int rank = 0; rank < size; ++rank) {
    for (int hop = 0; hop < size; ++hop) {
      const RingWork here = work(rank, hop);
      of_ranks_[size_t(rank)] += here;
      of_hops_[size_t(hop)] += here;
      largest_pairs_[size_t(hop)] = std::max(largest_pairs_[size_t(hop)], here.pairs);
    }
    in_all_ += of_ranks_[size_t(rank)];
  }
}

RingWork RingPicture::work(int rank, int hop) const {
  RingWork sum;
  const int owner = owner_at(rank, hop);
  const std::vector<Piece>& block = layout.ranks[size_t(owner)];
  for (int index = 0; index < int(block.size()); ++index) {
    const Piece& keys = block[size_t(index)];
    for (const Piece& queries : runs_[size_t(rank)]) {
      const int64_t pairs = queries.row_count * keys.row_count;
      sum.block_pairs += pairs;
      if (any_visible(mask, queries, keys)) {
        sum.pairs += visible_pairs(mask, queries, keys);
      } else {
        sum.skipped_pairs += pairs;
      }
    }
    const bool kv_travels = schedule.kv_travels(owner, index, hop);
    // As in model/ring_attention.h: a running sum that starts at the owner, or one that starts at the first visitor.
    const bool gradient_travels = layout.reproducible()
                                      ? kv_travels || schedule.sum_goes_home(owner, index, hop)
                                      : hop > 0 && schedule.gradient_travels(owner, index, hop);
    if (kv_travels) sum.kv_tokens += keys.row_count;
    if (gradient_travels) sum.gradient_tokens += keys.row_count;
  }
  return sum;
}

int RingPicture::busiest_rank() const {
  return int(std::ranges::max_element(of_ranks_, {}, &RingWork::pairs) - of_ranks_.begin());
}

double RingPicture::balance() const { return double(of_ranks_[size_t(busiest_rank())].pairs) / mean_pairs(); }

double RingPicture::critical_path() const {
  return double(std::accumulate(largest_pairs_.begin(), largest_pairs_.end(), int64_t{0})) / mean_pairs();
}

int64_t RingPicture::held(int rank, int64_t begin, int64_t end) const {
  // A query sees the keys up to its own position.
  const auto up_to = [](const Piece& piece, int64_t position) {
    return visible_pairs(Mask{}, {position, 1, 0, position < 0 ? 0 : 1}, piece);
  };
  int64_t count = 0;
  for (const Piece& piece : layout.ranks[size_t(rank)]) count += up_to(piece, end - 1) - up_to(piece, begin - 1);
  return count;
}

std::vector<int> first_and_last(int count, int most) {
  std::vector<int> shown;
  for (int i = 0; i < count; ++i) {
    if (count <= most || i < (most + 1) / 2 || i >= count - most / 2) shown.push_back(i);
  }
  return shown;
}

}  // namespace ringlet
