#include "kernels/comm/rank_order.h"

#include <algorithm>
#include <vector>

namespace ringlet {
namespace {

constexpr int64_t kAlignment = 16;             // bytes: sums read vectors
constexpr int64_t kGatheredBytes = 128 << 10;  // of a tensor that is gathered whole: latency counts, not bandwidth

Tensor flat(const Tensor& tensor) { return tensor.reshaped({tensor.size(), 1, 1, 1}); }

}  // namespace

RankOrder::RankOrder(MessageQueue& queue, int rank, int size, std::span<std::byte> scratch)
    : queue_(queue), rank_(rank), size_(size), scratch_(scratch) {
  CHECK(int64_t(scratch.size()) >= size * int64_t(64), scratch.size(), " bytes for ", size, " ranks");
}

void RankOrder::exchange(std::span<const Message> sends, std::span<const Message> receives) {
  const auto is_sent = [](const Message& message) { return message.tensor.size() > 0; };
  if (std::ranges::none_of(sends, is_sent) && std::ranges::none_of(receives, is_sent)) return;
  queue_.start_group();
  for (const Message& message : sends) {
    if (is_sent(message)) queue_.send(message.tensor, message.peer);
  }
  for (const Message& message : receives) {
    if (is_sent(message)) queue_.receive(message.tensor, message.peer);
  }
  queue_.end_group();
}

void RankOrder::all_reduce(const Tensor& values) {
  if (size_ == 1 || values.size() == 0) return;
  const Tensor whole = flat(values);
  const int64_t unit = kAlignment / element_bytes(values.dtype);
  const int64_t part = values.bytes() <= kGatheredBytes ? 0 : values.size() / size_ / unit * unit;
  if (part > 0) {
    const Tensor parts = whole.slice(0, part * size_);
    const Tensor own = parts.slice(rank_ * part, part);
    reduce_scatter(parts, own);
    queue_.all_gather(own, parts);
  }
  reduce_gathered(whole.slice(part * size_, whole.size() - part * size_));
}

void RankOrder::reduce_gathered(const Tensor& values) {
  const int64_t block = block_size(values);
  for (int64_t first = 0; first < values.size(); first += block) {
    const Tensor own = values.slice(first, std::min(block, values.size() - first));
    const Tensor gathered = make_tensor(scratch_.data(), own.dtype, {size_ * own.size(), 1, 1, 1});
    queue_.all_gather(own, gathered);
    std::vector<Tensor> inputs;
    for (int rank = 0; rank < size_; ++rank) inputs.push_back(gathered.slice(rank * own.size(), own.size()));
    sum(inputs, own);
  }
}

void RankOrder::reduce_scatter(const Tensor& values, const Tensor& shard) {
  if (shard.size() == 0) return;
  const Tensor from = flat(values), to = flat(shard);
  if (size_ == 1) {
    if (from.data != to.data) queue_.sum({&from, 1}, to);
    return;
  }
  const int64_t block = block_size(shard);
  for (int64_t first = 0; first < to.size(); first += block) {
    const int64_t count = std::min(block, to.size() - first);
    std::vector<Tensor> inputs;
    std::vector<Message> sends, receives;
    for (int peer = 0; peer < size_; ++peer) {
      const Tensor part = from.slice(peer * to.size() + first, count);
      const Tensor arrival = scratch_row(part, peer, block);
      inputs.push_back(peer == rank_ ? part : arrival);
      if (peer == rank_) continue;
      sends.push_back({peer, part});
      receives.push_back({peer, arrival});
    }
    exchange(sends, receives);
    sum(inputs, to.slice(first, count));
  }
}

void RankOrder::sum(std::span<const Tensor> inputs, const Tensor& output) {
  constexpr size_t kMost = MessageQueue::kMostInputs;
  if (inputs.size() <= kMost) return queue_.sum(inputs, output);
  // The first row of the scratch memory holds input 0, or, where that is this rank's own, nothing.
  const Tensor so_far = scratch_row(output, 0, output.size());
  std::vector<Tensor> next(inputs.begin(), inputs.begin() + kMost);
  for (size_t used = kMost;; used += kMost - 1) {
    if (used >= inputs.size()) return queue_.sum(next, output);
    queue_.sum(next, so_far);
    next.assign(1, so_far);
    const size_t count = std::min(kMost - 1, inputs.size() - used);
    next.insert(next.end(), inputs.begin() + int64_t(used), inputs.begin() + int64_t(used + count));
  }
}

/// A part of the scratch memory as large as `like`; rows are `block` elements apart.
Tensor RankOrder::scratch_row(const Tensor& like, int row, int64_t block) const {
  std::byte* data = scratch_.data() + row * block * element_bytes(like.dtype);
  return make_tensor(data, like.dtype, {like.size(), 1, 1, 1});
}

/// Elements of each rank that the scratch memory holds at a time.
int64_t RankOrder::block_size(const Tensor& like) const {
  const int64_t bytes = int64_t(scratch_.size()) / size_ / kAlignment * kAlignment;
  return bytes / element_bytes(like.dtype);
}

}  // namespace ringlet
