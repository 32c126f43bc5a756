#include "model/ring_schedule.h"

#include <algorithm>

namespace ringlet {

RingSchedule::RingSchedule(const SequenceLayout& layout, const Mask& mask, std::pmr::memory_resource* memory)
    : ring_size_(layout.ring_size()),
      most_pieces_(layout.most_pieces()),
      spans_(index(ring_size_, 0), memory),
      seen_at_(index(ring_size_, 0) * size_t(ring_size_), false, memory) {
  for (int owner = 0; owner < ring_size_; ++owner) {
    for (int piece = 0; piece < int(layout.ranks[owner].size()); ++piece) {
      const Piece& keys = layout.ranks[owner][piece];
      Span& span = spans_[index(owner, piece)];
      for (int hop = 0; hop < ring_size_; ++hop) {
        const bool seen = std::ranges::any_of(layout.ranks[(owner + hop) % ring_size_], [&](const Piece& queries) {
          return any_visible(mask, queries, keys);
        });
        seen_at_[index(owner, piece) * size_t(ring_size_) + size_t(hop)] = seen;
        if (!seen || hop == 0) continue;
        if (span.first == 0) span.first = hop;
        span.last = hop;
      }
    }
  }
}

bool RingSchedule::sees(int rank, int owner, int piece) const {
  return seen_at_[index(owner, piece) * size_t(ring_size_) + size_t((rank - owner + ring_size_) % ring_size_)];
}

}  // namespace ringlet
