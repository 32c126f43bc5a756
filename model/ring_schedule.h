#pragma once

#include <memory_resource>
#include <vector>

#include "model/sequence_layout.h"

namespace ringlet {

/// Who needs which piece of keys and values, and therefore what travels: a pure function of layout and mask, so that
/// sender and receiver always agree. At hop h the block of `owner` is at rank (owner + h) % R.
class RingSchedule {
 public:
  RingSchedule(const SequenceLayout& layout, const Mask& mask,
               std::pmr::memory_resource* memory = std::pmr::get_default_resource());

  int ring_size() const { return ring_size_; }
  /// Does any query of `rank` see this piece?
  bool sees(int rank, int owner, int piece) const;
  /// Do the keys and values of this piece move on from hop to hop + 1? (Does a later visitor need them?)
  bool kv_travels(int owner, int piece, int hop) const { return hop < span(owner, piece).last; }
  /// Does the gradient of this piece move on from hop (>= 1) to hop + 1? (Has a visitor put anything in it?)
  /// Hop ring_size() is the way home.
  bool gradient_travels(int owner, int piece, int hop) const {
    const int first = span(owner, piece).first;
    return first > 0 && first <= hop;
  }
  /// Does a running sum of its gradient go straight home after this hop? (Had the last visitor the piece?) Until then
  /// it moves on where the keys and values do.
  bool sum_goes_home(int owner, int piece, int hop) const { return hop > 0 && hop == span(owner, piece).last; }

 private:
  struct Span {
    int first = 0, last = 0;  // first and last hop >= 1 whose visitor sees the piece; 0: none
  };
  size_t index(int owner, int piece) const { return size_t(owner) * size_t(most_pieces_) + size_t(piece); }
  const Span& span(int owner, int piece) const { return spans_[index(owner, piece)]; }

  int ring_size_, most_pieces_;
  std::pmr::vector<Span> spans_;    // [owner, piece]
  std::pmr::vector<bool> seen_at_;  // [owner, piece, hop]
};

}  // namespace ringlet
