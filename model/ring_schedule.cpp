#include "model/ring_schedule.h"

#include <algorithm>

namespace ringlet {

RingSchedule::RingSchedule(const SequenceLayout& layout, const Mask& mask) {
  const int ring_size = layout.ring_size();
  std::vector<std::vector<Piece>> queries;  // of each rank
  for (const std::vector<Piece>& pieces : layout.ranks) queries.push_back(joined(pieces));
  spans_.resize(ring_size);
  for (int owner = 0; owner < ring_size; ++owner) {
    for (const Piece& keys : layout.ranks[owner]) {
      Span span;
      for (int hop = 0; hop < ring_size; ++hop) {
        const bool seen = std::ranges::any_of(
            queries[(owner + hop) % ring_size], [&](const Piece& run) { return any_visible(mask, run, keys); });
        span.seen_at.push_back(seen);
        if (!seen || hop == 0) continue;
        if (span.first == 0) span.first = hop;
        span.last = hop;
      }
      spans_[owner].push_back(span);
    }
  }
}

bool RingSchedule::sees(int rank, int owner, int piece) const {
  return spans_[owner][piece].seen_at[(rank - owner + ring_size()) % ring_size()];
}

}  // namespace ringlet
