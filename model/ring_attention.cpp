#include "model/ring_attention.h"

#include <array>

namespace ringlet {
namespace {

/// What both directions of one ring pass share: who owns the block in hand, and how its pieces travel.
class RingPass {
 public:
  RingPass(Step& step, const HeadShape& shape) : step_(step), shape_(shape) {}

  int size() const { return step_.ring.size(); }
  int rank() const { return step_.ring.rank(); }
  int next() const { return (rank() + 1) % size(); }
  int previous() const { return (rank() + size() - 1) % size(); }
  int owner_at(int hop) const { return (rank() - hop + size()) % size(); }
  const std::vector<Piece>& pieces_of(int owner) const { return step_.layout.ranks[owner]; }
  bool sees(int owner, int piece) const { return step_.schedule.sees(rank(), owner, piece); }

  /// A flat buffer that holds the keys and values of any rank.
  Tensor buffer(const char* region) const {
    const int64_t elements = 2 * shape_.kv_heads * shape_.head_dim * step_.layout.max_rows();
    return step_.arena().allocate(region, Dtype::f32, {elements, 1, 1, 1});
  }

  Tensor piece(const Tensor& buffer, int owner, int index) const {
    return kv_piece(buffer, shape_, pieces_of(owner)[index]);
  }

  /// Sends the keys and values in hand at `hop` to the next rank and receives those of hop + 1.
  Event start_kv_hop(int hop, const Tensor& in_hand, const Tensor& inbox) {
    return start_hop(hop, in_hand, inbox, [&](int owner, int index) {
      return step_.schedule.kv_travels(owner, index, hop);
    });
  }

  /// The same for the gradient in hand after the computation of `hop` (>= 1).
  Event start_gradient_hop(int hop, const Tensor& in_hand, const Tensor& inbox) {
    return start_hop(hop, in_hand, inbox, [&](int owner, int index) {
      return step_.schedule.gradient_travels(owner, index, hop);
    });
  }

  /// Calls body(attention step, piece index) for every visible pair of this rank's queries and the owner's keys,
  /// keys from the last position downwards.
  template <class Body>
  void for_each_visible_pair(int owner, const Body& body) {
    const std::vector<Piece>& keys = pieces_of(owner);
    for (int index = int(keys.size()) - 1; index >= 0; --index) {
      if (!sees(owner, index)) continue;
      for (const Piece& queries : step_.pieces()) {
        if (!any_visible(step_.mask, queries, keys[index])) continue;
        body(AttentionStep{shape_, queries, keys[index], step_.first_visible}, index);
      }
    }
  }

 private:
  template <class Travels>
  Event start_hop(int hop, const Tensor& in_hand, const Tensor& inbox, const Travels& travels) {
    const int mine = owner_at(hop), coming = owner_at(hop + 1);
    std::vector<Message> sends, receives;
    for (int index = 0; index < int(pieces_of(mine).size()); ++index) {
      if (travels(mine, index)) sends.push_back({next(), piece(in_hand, mine, index)});
    }
    for (int index = 0; index < int(pieces_of(coming).size()); ++index) {
      if (travels(coming, index)) receives.push_back({previous(), piece(inbox, coming, index)});
    }
    const Event event = step_.ring.exchange(sends, receives, step_.device.record());
    for (const Message& message : sends) step_.arena().hold(message.tensor, event);
    for (const Message& message : receives) step_.arena().hold(message.tensor, event);
    return event;
  }

  Step& step_;
  HeadShape shape_;
};

/// One hop of the backward pass: computes the gradient of the owner's block. Where a sum is about to arrive in
/// `inbox`, into `scratch`; where this rank is the first visitor, into `inbox` itself.
void compute_visitor_gradient(RingPass& ring, Step& step, int hop, const Tensor& inbox,
                              const Tensor& scratch, const auto& compute) {
  const int owner = ring.owner_at(hop);
  const auto target = [&](int index) {
    const bool arriving = step.schedule.gradient_travels(owner, index, hop - 1);
    return ring.piece(arriving ? scratch : inbox, owner, index);
  };
  for (int index = 0; index < int(ring.pieces_of(owner).size()); ++index) {
    if (ring.sees(owner, index)) step.device.fill(0, target(index));
  }
  ring.for_each_visible_pair(owner, [&](const AttentionStep& pair, int index) {
    compute(pair, index, target(index));
  });
}

}  // namespace

Tensor kv_piece(const Tensor& kv, const HeadShape& shape, const Piece& piece) {
  const int64_t row_elements = 2 * shape.kv_heads * shape.head_dim;
  return kv.slice(piece.first_row * row_elements, piece.row_count * row_elements)
      .reshaped({2, shape.kv_heads, piece.row_count, shape.head_dim});
}

void ring_attention_forward(Step& step, const HeadShape& shape, const Tensor& q, const Tensor& kv,
                            const Tensor& output, const Tensor& lse) {
  const ArenaScope scratch(step.arena());
  RingPass ring(step, shape);
  const auto allocate = [&](int64_t width) {
    return step.arena().allocate("attention state", Dtype::f32, {shape.heads, step.rows(), width, 1});
  };
  const AttentionState state{allocate(shape.head_dim), allocate(1), allocate(1)};
  std::array<Tensor, 2> inbox;
  if (ring.size() > 1) inbox = {ring.buffer("ring inboxes"), ring.buffer("ring inboxes")};

  step.device.attention_start(state);
  Tensor in_hand = kv;
  for (int hop = 0; hop < ring.size(); ++hop) {
    step.trace.enter_hop(hop);
    const bool last = hop + 1 == ring.size();
    Event arrived;
    if (!last) arrived = ring.start_kv_hop(hop, in_hand, inbox[hop % 2]);
    const int owner = ring.owner_at(hop);
    ring.for_each_visible_pair(owner, [&](const AttentionStep& pair, int index) {
      step.device.attention_forward(pair, q, ring.piece(in_hand, owner, index), state);
    });
    if (last) break;
    step.device.wait(arrived);
    in_hand = inbox[hop % 2];
  }
  step.device.attention_finish(shape, state, output, lse);
}

void ring_attention_backward(Step& step, const HeadShape& shape, const Tensor& q, const Tensor& kv,
                             const AttentionGradient& gradient, const Tensor& dq, const Tensor& dkv) {
  const ArenaScope scope(step.arena());
  RingPass ring(step, shape);
  std::array<Tensor, 2> inbox, gradient_inbox;
  Tensor scratch;
  if (ring.size() > 1) {
    inbox = {ring.buffer("ring inboxes"), ring.buffer("ring inboxes")};
    gradient_inbox = {ring.buffer("ring inboxes"), ring.buffer("ring inboxes")};
    scratch = ring.buffer("ring scratch");
  }

  step.trace.enter_hop(0);
  Event kv_arrived, gradient_arrived;
  if (ring.size() > 1) kv_arrived = ring.start_kv_hop(0, kv, inbox[0]);
  ring.for_each_visible_pair(ring.rank(), [&](const AttentionStep& pair, int index) {
    step.device.attention_backward(pair, q, ring.piece(kv, ring.rank(), index), gradient, dq,
                                   ring.piece(dkv, ring.rank(), index));
  });
  for (int hop = 1; hop < ring.size(); ++hop) {
    step.trace.enter_hop(hop);
    step.device.wait(kv_arrived);
    const Tensor in_hand = inbox[(hop - 1) % 2], sum = gradient_inbox[hop % 2];
    if (hop + 1 < ring.size()) kv_arrived = ring.start_kv_hop(hop, in_hand, inbox[hop % 2]);
    const int owner = ring.owner_at(hop);
    compute_visitor_gradient(ring, step, hop, sum, scratch,
                             [&](const AttentionStep& pair, int index, const Tensor& target) {
                               step.device.attention_backward(
                                   pair, q, ring.piece(in_hand, owner, index), gradient, dq, target);
                             });
    step.device.wait(gradient_arrived);
    for (int index = 0; index < int(ring.pieces_of(owner).size()); ++index) {
      if (ring.sees(owner, index) && step.schedule.gradient_travels(owner, index, hop - 1)) {
        step.device.add(ring.piece(scratch, owner, index), ring.piece(sum, owner, index));
      }
    }
    gradient_arrived = ring.start_gradient_hop(hop, sum, gradient_inbox[(hop + 1) % 2]);
  }
  step.device.wait(gradient_arrived);
  for (int index = 0; index < int(step.pieces().size()); ++index) {
    if (ring.size() > 1 && step.schedule.gradient_travels(ring.rank(), index, ring.size() - 1)) {
      step.device.add(ring.piece(gradient_inbox[ring.size() % 2], ring.rank(), index),
                      ring.piece(dkv, ring.rank(), index));
    }
  }
}

}  // namespace ringlet
