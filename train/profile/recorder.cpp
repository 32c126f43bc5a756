#include "train/profile/recorder.h"

#include <algorithm>
#include <span>

#include "kernels/check.h"

namespace ringlet {
namespace {

int64_t to_ns(TransferObserver::Time time) {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(time.time_since_epoch()).count();
}
int64_t now_ns() { return to_ns(std::chrono::steady_clock::now()); }

/// Half as much again as is expected: documents of other lengths let other pieces travel.
template <class Record>
void forget(std::vector<Record>& records, int64_t times) {
  const size_t expected = records.size() * size_t(times);
  records.clear();
  records.reserve(expected + expected / 2);
}

}  // namespace

void RankRecorder::begin_step(int64_t number) {
  if (clock_ != nullptr) clock_->take();  // of no step
  first_of_step_ = {operations.size(), waits.size(), phases.size()};
  last_end_ns_ = now_ns();
  steps.push_back({number, last_end_ns_, 0});
  phase_ = nullptr;
  exposed_ = trace_.exposed_wait();
}

void RankRecorder::end_step() {
  if (clock_ != nullptr) return put_device_times();
  steps.back().end_ns = now_ns();
}

/// In place of the times at which the step's calls were made. Calls and waits stay in their order; a phase begins when the
/// host came to it, but not before the device had done what stands before it.
void RankRecorder::put_device_times() {
  const int64_t asked_ns = now_ns();
  const std::vector<WorkClock::Stretch> stretches = clock_->take();
  const std::span<Operation> calls = std::span(operations).subspan(first_of_step_.operation);
  CHECK(stretches.size() == calls.size(), stretches.size(), " stretches of work for ", calls.size(), " calls");
  int64_t done_ns = steps.back().begin_ns;
  size_t wait = first_of_step_.wait, next_phase = first_of_step_.phase;
  const char* phase = nullptr;
  const auto put = [&](const Trace::Place& place, int64_t& begin_ns, int64_t& end_ns) {
    begin_ns = std::max(begin_ns, done_ns);
    if (place.phase != phase) {
      phase = place.phase;
      int64_t& entered_ns = phases[next_phase++].begin_ns;
      entered_ns = std::clamp(entered_ns, done_ns, begin_ns);
    }
    end_ns = done_ns = std::max(begin_ns, end_ns);
  };
  for (size_t i = 0; i < calls.size(); ++i) {
    const int64_t begin_ns = to_ns(stretches[i].begin);
    for (; wait < waits.size() && waits[wait].next_operation <= first_of_step_.operation + i; ++wait) {
      waits[wait].end_ns = std::min(waits[wait].end_ns, std::max(begin_ns, waits[wait].begin_ns));
      put(waits[wait].place, waits[wait].begin_ns, waits[wait].end_ns);
    }
    calls[i].begin_ns = begin_ns;
    calls[i].end_ns = to_ns(stretches[i].end);
    put(calls[i].place, calls[i].begin_ns, calls[i].end_ns);
  }
  for (; wait < waits.size(); ++wait) put(waits[wait].place, waits[wait].begin_ns, waits[wait].end_ns);
  steps.back().end_ns = std::max(asked_ns, done_ns + 1);
}

void RankRecorder::restart(int64_t times) {
  forget(operations, times);
  forget(waits, times);
  forget(posts, times);
  forget(messages, times);
  forget(phases, times);
  forget(steps, times);
}

Trace::Place RankRecorder::enter_place(int64_t begin_ns) {
  const Trace::Place place = trace_.place();
  if (place.phase == phase_) return place;
  // The rank's last sign of life is its entry into the phase, unless it waited since: then the call's own begin counts.
  phases.push_back({place.phase, std::max(last_end_ns_, std::min(begin_ns, to_ns(trace_.last_sign())))});
  phase_ = place.phase;
  return place;
}

void RankRecorder::before_call(const OpCall& call) {
  if (clock_ != nullptr) clock_->begin(name_of(call.op));
}

void RankRecorder::on_call(const OpCall& call, std::chrono::nanoseconds took) {
  if (clock_ != nullptr) clock_->end();
  const int64_t end_ns = now_ns();
  const int64_t begin_ns = std::max(last_end_ns_, end_ns - took.count());
  operations.push_back({enter_place(begin_ns), begin_ns, end_ns, call, arena_.used_bytes()});
  last_end_ns_ = end_ns;
}

void RankRecorder::on_wait(Event event) {
  const std::chrono::nanoseconds exposed = trace_.exposed_wait(), took = exposed - exposed_;
  if (took.count() == 0) return;
  exposed_ = exposed;
  const int64_t end_ns = now_ns();
  const int64_t begin_ns = std::max(last_end_ns_, end_ns - took.count());
  waits.push_back({enter_place(begin_ns), begin_ns, end_ns, event, operations.size()});
  last_end_ns_ = end_ns;
}

void RankRecorder::on_exchange(Event event, int ring_size, std::span<const Message> sends,
                               std::span<const Message> receives) {
  using Direction = TransferObserver::Direction;
  Post post{.place = trace_.place(), .event = event, .first_message = messages.size()};
  const bool first_of_hop = post.place.phase != hop_.phase || post.place.layer != hop_.layer || post.place.hop != hop_.hop;
  hop_ = post.place;
  if (first_of_hop && post.place.hop + 1 < ring_size) post.cargo = Cargo::keys_and_values;
  const auto add = [&](std::span<const Message> some, Direction direction) {
    for (const Message& message : some) {
      if (message.tensor.size() == 0) continue;
      messages.push_back({message.peer, message.tensor.bytes(), direction});
      if (direction == Direction::out) post.sent_bytes += message.tensor.bytes();
    }
  };
  add(sends, Direction::out);
  add(receives, Direction::in);
  post.message_count = messages.size() - post.first_message;
  if (post.message_count == 0) return;  // its event may be that of the post before
  posts.push_back(post);
}

void RankRecorder::on_collective(Cargo cargo, Event event, int64_t sent_bytes) {
  posts.push_back({.place = trace_.place(), .cargo = cargo, .event = event, .sent_bytes = sent_bytes});
}

Event RecordingComm::exchange(std::span<const Message> sends, std::span<const Message> receives, Event after) {
  const Event event = ForwardingComm::exchange(sends, receives, after);
  recorder_.on_exchange(event, size(), sends, receives);
  return event;
}

Event RecordingComm::all_reduce(const Tensor& values, Event after) {
  const Event event = ForwardingComm::all_reduce(values, after);
  recorder_.on_collective(Cargo::all_reduce, event, Traffic::of_all_reduce(values, size()));
  return event;
}

Event RecordingComm::reduce_scatter(const Tensor& values, const Tensor& shard, Event after) {
  const Event event = ForwardingComm::reduce_scatter(values, shard, after);
  recorder_.on_collective(Cargo::reduce_scatter, event, Traffic::of_shards(shard, size()));
  return event;
}

Event RecordingComm::all_gather(const Tensor& shard, const Tensor& values, Event after) {
  const Event event = ForwardingComm::all_gather(shard, values, after);
  recorder_.on_collective(Cargo::all_gather, event, Traffic::of_shards(shard, size()));
  return event;
}

Event RecordingComm::broadcast(const Tensor& values, int root, Event after) {
  const Event event = ForwardingComm::broadcast(values, root, after);
  Traffic sent;
  sent.count_broadcast(values, size(), root == rank());
  recorder_.on_collective(Cargo::broadcast, event, sent.bytes());
  return event;
}

void TransferLog::on_transfer(Event event, Direction direction, Time begin, Time end) {
  transfers.push_back({event, direction, to_ns(begin), to_ns(end)});
}

TransferLog& TransferLogs::add() {
  const std::lock_guard lock(mutex_);
  return logs_.emplace_back();
}

void TransferLogs::restart(int64_t times) {
  for (TransferLog& log : logs_) forget(log.transfers, times);
}

}  // namespace ringlet
