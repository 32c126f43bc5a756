#include "model/ring_pass.h"

#include <algorithm>

namespace ringlet {

RingPass::RingPass(Step& step, const HeadShape& shape, const Tensor& own_kv)
    : step_(step), shape_(shape), own_kv_(own_kv), queries_(joined(step.pieces(), step.host_memory)) {
  inbox_ = {buffer("ring inboxes", own_kv.dtype), buffer("ring inboxes", own_kv.dtype)};
}

Tensor RingPass::allocate(const char* region, Dtype dtype, int64_t rows) const {
  if (size() == 1) return {};
  const int64_t row_elements = 2 * shape_.kv_heads * shape_.head_dim;
  return step_.arena().allocate(region, dtype, {row_elements * rows, 1, 1, 1});
}

Tensor RingPass::piece(const Tensor& buffer, int owner, int index) const {
  return kv_piece(buffer, shape_, pieces_of(owner)[index]);
}

Tensor RingPass::piece_buffer(const char* region, int index) const {
  int64_t rows = 0;
  for (int owner = 0; owner < size(); ++owner) {
    if (index < piece_count(owner)) rows = std::max(rows, pieces_of(owner)[index].row_count);
  }
  return allocate(region, Dtype::f32, rows);
}

Tensor RingPass::alone(const Tensor& piece_buffer, int owner, int index) const {
  Piece at_start = pieces_of(owner)[index];
  at_start.first_row = 0;
  return kv_piece(piece_buffer, shape_, at_start);
}

Tensor RingPass::take_kv(int hop) {
  step_.device.wait(arrived_);
  const Tensor in_hand = hop == 0 ? own_kv_ : inbox_[(hop + 1) % 2];
  if (hop + 1 < size()) {
    arrived_ = start_hop(hop, in_hand, inbox_[hop % 2], [&](int owner, int index) {
      return step_.schedule.kv_travels(owner, index, hop);
    });
  }
  return in_hand;
}

Event RingPass::start_sum_hop(int hop, int index, const Tensor& sum, const Tensor& inbox,
                              const Tensor& home) {
  const int mine = owner_at(hop), coming = owner_at(hop + 1);
  const auto moves_on = [&](int owner) {
    return index < piece_count(owner) && step_.schedule.kv_travels(owner, index, hop);
  };
  const auto goes_home = [&](int owner) {
    return index < piece_count(owner) && step_.schedule.sum_goes_home(owner, index, hop);
  };
  Messages sends(step_.host_memory), receives(step_.host_memory);
  if (moves_on(mine)) sends.push_back({next(), sum});
  if (goes_home(mine)) sends.push_back({mine, sum});
  if (moves_on(coming)) receives.push_back({previous(), alone(inbox, coming, index)});
  if (goes_home(rank())) receives.push_back({(rank() + hop) % size(), piece(home, rank(), index)});
  return exchange(sends, receives);
}

Event RingPass::exchange(std::span<const Message> sends, std::span<const Message> receives) {
  const Event event = step_.ring.exchange(sends, receives, step_.device.record());
  for (const Message& message : sends) step_.arena().hold(message.tensor, event);
  for (const Message& message : receives) step_.arena().hold(message.tensor, event);
  return event;
}

}  // namespace ringlet
