#include "kernels/comm/emulated_link.h"

#include <algorithm>
#include <thread>

#include "kernels/comm/traffic.h"

namespace ringlet {
namespace {

constexpr double kSleepSeconds = 0.05;

}  // namespace

Event EmulatedLink::exchange(std::span<const Message> sends, std::span<const Message> receives, Event after) {
  auto transfer = std::make_unique<Transfer>();
  transfer->asked_at = now();
  const Link& link = timeline_.link();
  // Beside the messages to a peer goes the time at which they were sent.
  std::vector<Message> out(sends.begin(), sends.end()), in(receives.begin(), receives.end());
  std::vector<int> to, from;
  const auto add = [&](std::span<const Message> messages, std::vector<int>& peers, double& seconds) {
    for (const Message& message : messages) {
      if (message.tensor.size() == 0) continue;
      seconds += link.message_seconds(message.tensor.bytes());
      if (std::ranges::find(peers, message.peer) == peers.end()) peers.push_back(message.peer);
    }
  };
  add(sends, to, transfer->out_seconds);
  add(receives, from, transfer->in_seconds);
  transfer->peers_asked_at.assign(from.size(), 0);
  const auto time_at = [](double& time) {
    return make_tensor(reinterpret_cast<std::byte*>(&time), Dtype::f64, {1, 1, 1, 1});
  };
  for (const int peer : to) out.push_back({peer, time_at(transfer->asked_at)});
  for (size_t i = 0; i < from.size(); ++i) in.push_back({from[i], time_at(transfer->peers_asked_at[i])});
  transfer->inner = ForwardingComm::exchange(out, in, after);
  return timeline_.add(std::move(transfer));
}

Event EmulatedLink::all_reduce(const Tensor& values, Event after) {
  const double asked_at = now();
  return start_collective(ForwardingComm::all_reduce(values, after), Traffic::of_all_reduce(values, size()), asked_at);
}

Event EmulatedLink::reduce_scatter(const Tensor& values, const Tensor& shard, Event after) {
  const double asked_at = now();
  return start_collective(ForwardingComm::reduce_scatter(values, shard, after), Traffic::of_shards(shard, size()),
                          asked_at);
}

Event EmulatedLink::all_gather(const Tensor& shard, const Tensor& values, Event after) {
  const double asked_at = now();
  return start_collective(ForwardingComm::all_gather(shard, values, after), Traffic::of_shards(shard, size()), asked_at);
}

Event EmulatedLink::start_collective(Event inner, int64_t sent_bytes, double asked_at) {
  auto transfer = std::make_unique<Transfer>();
  transfer->inner = inner;
  transfer->asked_at = asked_at;
  transfer->is_collective = true;
  transfer->out_seconds = transfer->in_seconds = timeline_.link().collective_seconds(sent_bytes, size());
  return timeline_.add(std::move(transfer));
}

Event EmulatedLink::Arrivals::add(std::unique_ptr<Transfer> transfer) {
  const std::lock_guard lock(mutex_);
  const Event event{this, ++posted_};
  transfer->event = event;
  under_way_.push_back(std::move(transfer));
  return event;
}

void EmulatedLink::Arrivals::arrive() const {
  const Transfer& transfer = *under_way_.front();
  double received_from = transfer.asked_at;
  for (const double time : transfer.peers_asked_at) received_from = std::max(received_from, time);
  if (transfer.out_seconds > 0) out_free_ = std::max(out_free_, transfer.asked_at) + transfer.out_seconds;
  if (transfer.in_seconds > 0) in_free_ = std::max(in_free_, received_from) + transfer.in_seconds;
  if (transfer.out_seconds > 0) through_at_ = std::max(through_at_, out_free_);
  if (transfer.in_seconds > 0) through_at_ = std::max(through_at_, in_free_);
  if (transfer.in_seconds > 0) prompt_in_free_ = std::max(prompt_in_free_, transfer.asked_at) + transfer.in_seconds;
  prompt_at_ = std::max({prompt_at_, out_free_, prompt_in_free_});
  if (observer_ != nullptr) tell(transfer);
  under_way_.pop_front();
  ++arrived_;
}

void EmulatedLink::Arrivals::tell(const Transfer& transfer) const {
  using Direction = TransferObserver::Direction;
  const auto at = [](double seconds) {
    return Clock::time_point(std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds)));
  };
  const auto tell_side = [&](Direction direction, double free, double seconds) {
    if (seconds > 0) observer_->on_transfer(transfer.event, direction, at(free - seconds), at(free));
  };
  if (transfer.is_collective) return tell_side(Direction::both, out_free_, transfer.out_seconds);
  tell_side(Direction::out, out_free_, transfer.out_seconds);
  tell_side(Direction::in, in_free_, transfer.in_seconds);
}

bool EmulatedLink::Arrivals::reached(int64_t value) const {
  const std::lock_guard lock(mutex_);
  while (arrived_ < value && under_way_.front()->inner.reached()) arrive();
  return arrived_ >= value && now() >= through_at_;
}

void EmulatedLink::Arrivals::wait(int64_t value) {
  const double began_at = now();
  for (;;) {
    Event next;
    {
      const std::lock_guard lock(mutex_);
      if (arrived_ >= value) break;
      next = under_way_.front()->inner;
    }
    next.wait();
    const std::lock_guard lock(mutex_);
    if (arrived_ < value && under_way_.front()->inner.reached()) arrive();
  }
  double through_at = 0, prompt_at = 0;
  {
    const std::lock_guard lock(mutex_);
    through_at = through_at_;
    prompt_at = prompt_at_;
  }
  trace_.add_link_wait(std::chrono::nanoseconds(int64_t(1e9 * std::max(0.0, prompt_at - began_at))));
  // A slow link is no rank that hangs.
  for (double left = through_at - now(); left > 0; left = through_at - now()) {
    std::this_thread::sleep_for(std::chrono::duration<double>(std::min(left, kSleepSeconds)));
    trace_.sign_of_life();
  }
}

}  // namespace ringlet
