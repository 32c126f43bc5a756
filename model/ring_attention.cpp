#include "model/ring_attention.h"

#include "model/ring_pass.h"

namespace ringlet {
namespace {

/// What the backward pass of a rank reads, and what it adds to.
struct Backward {
  Step& step;
  RingPass ring;
  Tensor q;
  AttentionGradient gradient;
  Tensor dq, dkv;

  /// Adds to dq; sets `sum`, or adds to it, what piece `index` of the keys and values in hand gets from this rank's
  /// queries, some of which see it.
  void compute(int owner, int index, const Tensor& in_hand, Write write, const Tensor& sum) {
    ring.for_each_query_run(owner, index, [&](const AttentionStep& pair) {
      step.device.attention_backward(pair, q, ring.piece(in_hand, owner, index), gradient, dq, write, sum);
      write = Write::add;
    });
  }
};

/// Any layout. The gradient of a block starts at its first visitor; each visitor computes into scratch and adds that to
/// the sum that has arrived meanwhile, so that a whole step of compute hides a hop.
void add_sums_afterwards(Backward& pass) {
  Step& step = pass.step;
  RingPass& ring = pass.ring;
  const std::array<Tensor, 2> inbox{ring.buffer("ring inboxes", Dtype::f32),
                                    ring.buffer("ring inboxes", Dtype::f32)};
  const Tensor scratch = ring.buffer("ring scratch", Dtype::f32);
  const auto arrives = [&](int owner, int index, int hop) {
    return step.schedule.gradient_travels(owner, index, hop - 1);
  };
  Event arrived;
  for (int hop = 0; hop < ring.size(); ++hop) {
    step.trace.enter_hop(hop);
    const Tensor in_hand = ring.take_kv(hop);
    const Tensor sum = hop == 0 ? pass.dkv : inbox[hop % 2];
    const int owner = ring.owner_at(hop), last_piece = ring.piece_count(owner) - 1;
    for (int index = last_piece; index >= 0; --index) {
      if (!ring.sees(owner, index)) continue;
      const Tensor to = ring.piece(arrives(owner, index, hop) ? scratch : sum, owner, index);
      pass.compute(owner, index, in_hand, Write::set, to);
    }
    if (hop == 0) continue;
    step.device.wait(arrived);
    for (int index = last_piece; index >= 0; --index) {
      if (!ring.sees(owner, index) || !arrives(owner, index, hop)) continue;
      step.device.add(ring.piece(scratch, owner, index), ring.piece(sum, owner, index));
    }
    arrived = ring.start_hop(hop, sum, inbox[(hop + 1) % 2], [&](int block, int index) {
      return step.schedule.gradient_travels(block, index, hop);
    });
  }
  step.device.wait(arrived);
  for (int index = 0; index < ring.piece_count(ring.rank()); ++index) {
    if (!arrives(ring.rank(), index, ring.size())) continue;
    step.device.add(ring.piece(inbox[ring.size() % 2], ring.rank(), index),
                    ring.piece(pass.dkv, ring.rank(), index));
  }
}

/// Reproducible layouts: a key meets the queries in the order of their positions. The running sum of a piece starts
/// at its owner and passes from visitor to visitor; while it travels the next piece is computed.
void pass_sums_along(Backward& pass) {
  Step& step = pass.step;
  RingPass& ring = pass.ring;
  struct Boxes {  // of one piece index: one is in use while the other one fills
    std::array<Tensor, 2> box;
    Event arrived;
  };
  std::pmr::vector<Boxes> boxes(size_t(ring.most_pieces()), step.host_memory);
  for (int index = 0; index < ring.most_pieces(); ++index) {
    for (Tensor& box : boxes[index].box) box = ring.piece_buffer("ring inboxes", index);
  }
  for (int hop = 0; hop < ring.size(); ++hop) {
    step.trace.enter_hop(hop);
    const Tensor in_hand = ring.take_kv(hop);
    const int owner = ring.owner_at(hop);
    for (int index = ring.most_pieces() - 1; index >= 0; --index) {
      auto& [box, arrived] = boxes[index];
      step.device.wait(arrived);
      Tensor sum;
      if (index < ring.piece_count(owner)) {
        sum = hop == 0 ? ring.piece(pass.dkv, owner, index)
                       : ring.alone(box[(hop + 1) % 2], owner, index);
        pass.compute(owner, index, in_hand, hop == 0 ? Write::set : Write::add, sum);
      }
      arrived = ring.start_sum_hop(hop, index, sum, box[hop % 2], pass.dkv);
    }
  }
  for (const Boxes& last : boxes) step.device.wait(last.arrived);
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
  const auto allocate = [&](int64_t width) {
    return step.arena().allocate("attention state", Dtype::f32, {shape.heads, step.rows(), width, 1});
  };
  const AttentionState state{allocate(shape.head_dim), allocate(1), allocate(1)};
  RingPass ring(step, shape, kv);

  step.device.attention_start(state);
  for (int hop = 0; hop < ring.size(); ++hop) {
    step.trace.enter_hop(hop);
    const Tensor in_hand = ring.take_kv(hop);
    const int owner = ring.owner_at(hop);
    for (int index = ring.piece_count(owner) - 1; index >= 0; --index) {
      ring.for_each_query_run(owner, index, [&](const AttentionStep& pair) {
        step.device.attention_forward(pair, q, ring.piece(in_hand, owner, index), state);
      });
    }
  }
  step.trace.enter_hop(-1);
  step.device.attention_finish(shape, state, output, lse);
}

void ring_attention_backward(Step& step, const HeadShape& shape, const Tensor& q, const Tensor& kv,
                             const AttentionGradient& gradient, const Tensor& dq, const Tensor& dkv) {
  const ArenaScope scope(step.arena());
  Backward pass{step, RingPass(step, shape, kv), q, gradient, dq, dkv};
  if (step.layout.reproducible()) {
    pass_sums_along(pass);
  } else {
    add_sums_afterwards(pass);
  }
  step.trace.enter_hop(-1);
}

}  // namespace ringlet
