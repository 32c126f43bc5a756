#pragma once

#include <array>
#include <memory_resource>
#include <vector>

#include "model/ring_attention.h"

namespace ringlet {

/// One trip of all keys and values round the ring: whose block is in hand, which of this rank's queries see it, and
/// what travels meanwhile. All ranks call the same members in the same order. The inboxes live in the arena until
/// the caller rewinds.
class RingPass {
 public:
  /// own_kv: flat, piece by piece, this rank's own.
  RingPass(Step& step, const HeadShape& shape, const Tensor& own_kv);

  int size() const { return step_.ring.size(); }
  int rank() const { return step_.ring.rank(); }
  int owner_at(int hop) const { return (rank() - hop + size()) % size(); }
  int piece_count(int owner) const { return int(pieces_of(owner).size()); }
  int most_pieces() const { return step_.layout.most_pieces(); }
  bool sees(int owner, int index) const { return step_.schedule.sees(rank(), owner, index); }

  /// A flat buffer for the keys and values of any rank, absent on a ring of one, and a piece in it.
  Tensor buffer(const char* region, Dtype dtype) const {
    return allocate(region, dtype, step_.layout.max_rows());
  }
  Tensor piece(const Tensor& buffer, int owner, int index) const;

  /// An f32 buffer for piece `index` of any rank, absent on a ring of one, and that piece in it.
  Tensor piece_buffer(const char* region, int index) const;
  Tensor alone(const Tensor& piece_buffer, int owner, int index) const;

  /// The keys and values of owner_at(hop), flat, for hop 0, 1, ... in turn. Waits for them, and sends them on while
  /// those of hop + 1 arrive in the other inbox. What is in hand may be overwritten once the next is taken.
  Tensor take_kv(int hop);

  /// Sends those pieces of the block in hand for which travels(owner, index) says so to the next rank, and receives
  /// those of the block of hop + 1.
  template <class Travels>
  Event start_hop(int hop, const Tensor& in_hand, const Tensor& inbox, const Travels& travels) {
    const int mine = owner_at(hop), coming = owner_at(hop + 1);
    Messages sends(step_.host_memory), receives(step_.host_memory);
    for (int index = 0; index < piece_count(mine); ++index) {
      if (travels(mine, index)) sends.push_back({next(), piece(in_hand, mine, index)});
    }
    for (int index = 0; index < piece_count(coming); ++index) {
      if (travels(coming, index)) receives.push_back({previous(), piece(inbox, coming, index)});
    }
    return exchange(sends, receives);
  }

  /// Sends `sum`, the running sum of piece `index` of the block in hand (absent if that has fewer pieces), to the
  /// next rank, or from the last visitor home. Receives the one of the block of hop + 1 in `inbox`, a piece buffer,
  /// and this rank's own from its last visitor in `home`, flat.
  Event start_sum_hop(int hop, int index, const Tensor& sum, const Tensor& inbox, const Tensor& home);

  /// Calls body(attention step) for each run of this rank's queries that sees the owner's piece of keys.
  template <class Body>
  void for_each_query_run(int owner, int index, const Body& body) const {
    const Piece& keys = pieces_of(owner)[index];
    for (const Piece& queries : query_runs(step_.mask, queries_, keys, step_.host_memory)) {
      body(AttentionStep{shape_, queries, keys, step_.first_visible});
    }
  }

 private:
  using Messages = std::pmr::vector<Message>;
  int next() const { return (rank() + 1) % size(); }
  int previous() const { return (rank() + size() - 1) % size(); }
  const std::vector<Piece>& pieces_of(int owner) const { return step_.layout.ranks[owner]; }
  Tensor allocate(const char* region, Dtype dtype, int64_t rows) const;
  Event exchange(std::span<const Message> sends, std::span<const Message> receives);

  Step& step_;
  HeadShape shape_;
  Tensor own_kv_;
  const std::pmr::vector<Piece> queries_;
  std::array<Tensor, 2> inbox_;
  Event arrived_;
};

}  // namespace ringlet
