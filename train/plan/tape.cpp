#include "train/plan/tape.h"

#include <fmt/core.h>

#include <algorithm>

namespace ringlet {

std::string PeakMoment::text() const {
  std::string text = phase;
  if (layer >= 0) text += fmt::format(", layer {}", layer);
  if (hop >= 0) text += fmt::format(", hop {}", hop);
  return text + ", " + name_of(op);
}

TapeEntry Tape::entry(TapeEntry::Kind kind) const {
  const Trace::Place place = trace_.place();
  return {.kind = kind, .layer = place.layer, .hop = place.hop, .phase = place.phase};
}

void Tape::on_call(const OpCall& call, std::chrono::nanoseconds) {
  if (arena_.peak_bytes() > peak_bytes_) {
    peak_bytes_ = arena_.peak_bytes();
    const Trace::Place place = trace_.place();
    moment_ = {place.phase, place.layer, place.hop, call.op};
  }
  double work = call.work;
  if (is_attention(call.op)) {
    work *= double(visible_pairs(mask_, call.queries, call.keys));
    attention_flops_ += work;
  } else if (is_matmul(call.op)) {
    matmul_flops_ += work;
  }
  if (rates_ == nullptr || work == 0) return;
  const double seconds = rates_->seconds(call.op, call.size, work);
  TapeEntry now = entry(TapeEntry::Kind::compute);
  if (!entries_.empty()) {
    TapeEntry& last = entries_.back();
    if (last.kind == now.kind && last.layer == now.layer && last.hop == now.hop && last.phase == now.phase) {
      last.seconds += seconds;
      return;
    }
  }
  now.seconds = seconds;
  entries_.push_back(now);
}

TapeEntry Tape::started(TapeEntry::Kind kind, Channel channel, Event event) {
  timelines_[channel] = event.timeline;
  TapeEntry result = entry(kind);
  result.channel = channel;
  result.operation = event.value;
  return result;
}

void Tape::on_wait(Event event) {
  if (event.timeline == nullptr || rates_ == nullptr) return;
  const auto found = std::ranges::find(timelines_, event.timeline);
  if (found == timelines_.end()) return;  // of copies whose time is not known
  entries_.push_back(started(TapeEntry::Kind::wait, Channel(found - timelines_.begin()), event));
}

void Tape::on_exchange(Channel channel, Event event, std::span<const Message> sends,
                       std::span<const Message> receives) {
  if (rates_ == nullptr) return;
  TapeEntry hop = started(TapeEntry::Kind::exchange, channel, event);
  hop.first_message = messages_.size();
  const auto add = [&](std::span<const Message> messages, TapeMessage::Direction direction) {
    for (const Message& message : messages) {
      if (message.tensor.size() == 0) continue;
      messages_.push_back({message.peer, message.tensor.bytes(), direction});
    }
  };
  add(sends, TapeMessage::Direction::out);
  add(receives, TapeMessage::Direction::in);
  hop.message_count = messages_.size() - hop.first_message;
  entries_.push_back(hop);
}

void Tape::on_collective(Channel channel, Event event, int64_t sent_bytes) {
  if (rates_ == nullptr) return;
  TapeEntry collective = started(TapeEntry::Kind::collective, channel, event);
  collective.bytes = sent_bytes;
  entries_.push_back(collective);
}

void Tape::on_copy(Event event, int64_t bytes) {
  if (rates_ == nullptr || rates_->offload_bytes_per_second == 0) return;
  TapeEntry copy = started(TapeEntry::Kind::copy, kOffload, event);
  copy.seconds = double(bytes) / rates_->offload_bytes_per_second;
  entries_.push_back(copy);
}

Event TapeOffload::copy(int64_t bytes) {
  bytes_ += bytes;
  const Event event{this, ++copies_};
  tape_.on_copy(event, bytes);
  return event;
}

Event TapeComm::exchange(std::span<const Message> sends, std::span<const Message> receives, Event after) {
  const Event event = ForwardingComm::exchange(sends, receives, after);
  tape_.on_exchange(channel_, event, sends, receives);
  return event;
}

Event TapeComm::all_reduce(const Tensor& values, Event after) {
  const Event event = ForwardingComm::all_reduce(values, after);
  tape_.on_collective(channel_, event, Traffic::of_all_reduce(values, size()));
  return event;
}

Event TapeComm::reduce_scatter(const Tensor& values, const Tensor& shard, Event after) {
  const Event event = ForwardingComm::reduce_scatter(values, shard, after);
  tape_.on_collective(channel_, event, Traffic::of_shards(shard, size()));
  return event;
}

Event TapeComm::all_gather(const Tensor& shard, const Tensor& values, Event after) {
  const Event event = ForwardingComm::all_gather(shard, values, after);
  tape_.on_collective(channel_, event, Traffic::of_shards(shard, size()));
  return event;
}

}  // namespace ringlet
