#pragma once

#include <cstdint>
#include <vector>

#include "model/ring_schedule.h"
#include "model/sequence_layout.h"

namespace ringlet {

/// What is computed and sent in one attention layer, for one window: of a rank at a hop, or a sum over those.
struct RingWork {
  int64_t pairs = 0;            // of a query and a key that it sees: the work
  int64_t block_pairs = 0;      // of a query and a key at all
  int64_t skipped_pairs = 0;    // of those: in runs of queries that see nothing of a piece of keys, never computed
  int64_t kv_tokens = 0;        // whose keys and values move on to the next rank: forward, and once more backward
  int64_t gradient_tokens = 0;  // whose dK and dV move on, or home

  RingWork& operator+=(const RingWork& other);
};

/// What every rank of a ring does, hop by hop, by the functions of which the trainer's own ring is made: the layout, the
/// schedule, the mask. Takes time for the ring's size squared times its pieces, and memory for it in bits.
class RingPicture {
 public:
  RingPicture(Layout name, int64_t length, int ring_size, const Mask& mask, int pieces = 0);

  const Layout name;
  const Mask mask;
  const SequenceLayout layout;
  const RingSchedule schedule;

  int ring_size() const { return layout.ring_size(); }
  /// Whose block a rank has in hand.
  int owner_at(int rank, int hop) const { return (rank - hop + ring_size()) % ring_size(); }
  /// What a rank does with it, and sends when it is done.
  RingWork work(int rank, int hop) const;
  const std::vector<RingWork>& of_ranks() const { return of_ranks_; }
  const std::vector<RingWork>& of_hops() const { return of_hops_; }
  const RingWork& in_all() const { return in_all_; }

  /// The pairs of the rank that has most at this hop.
  int64_t largest_pairs(int hop) const { return largest_pairs_[size_t(hop)]; }
  double mean_pairs() const { return double(in_all_.pairs) / ring_size(); }
  int busiest_rank() const;
  /// Largest work of a rank over the mean.
  double balance() const;
  /// How long a ring in step takes, which ends each hop with the rank that has most, over the time of equal work.
  double critical_path() const;

  /// How many of the positions [begin, end) a rank holds.
  int64_t held(int rank, int64_t begin, int64_t end) const;

 private:
  std::vector<std::pmr::vector<Piece>> runs_;  // of each rank's queries
  std::vector<RingWork> of_ranks_, of_hops_;
  std::vector<int64_t> largest_pairs_;  // by hop
  RingWork in_all_;
};

/// At most `most` of the numbers 0 to count - 1, in order: all, or those at both ends.
std::vector<int> first_and_last(int count, int most);

}  // namespace ringlet
