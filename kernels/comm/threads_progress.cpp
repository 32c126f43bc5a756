// The progress thread: performs each operation as soon as it may start.

#include <sys/prctl.h>

#include <fmt/format.h>

#include "kernels/comm/threads_world.h"

namespace ringlet::threads {
namespace {

/// How often events of foreign timelines are looked at; they cannot wake this thread. A hop of a short
/// sequence takes a GPU some hundred microseconds, so messages should not start much later than they may.
constexpr std::chrono::microseconds kPollInterval{20};
/// Otherwise the system adds up to 50 us to every short sleep.
constexpr unsigned long kTimerSlackNanoseconds = 1000;

bool may_start(const Part& part) {
  try {
    return part.after.reached();
  } catch (...) {
    const std::string prefix = fmt::format("rank {}: ", part.world_rank);
    std::rethrow_exception(describe_failure(std::current_exception(), prefix).error);
  }
}

/// Makes the count odd as long as it lives.
class Round {
 public:
  explicit Round(ChangeCount& rounds) : rounds_(rounds) { rounds_.tell(); }
  ~Round() { rounds_.tell(); }
  Round(const Round&) = delete;
  Round& operator=(const Round&) = delete;

 private:
  ChangeCount& rounds_;
};

}  // namespace

void World::progress() {
  prctl(PR_SET_TIMERSLACK, kTimerSlackNanoseconds, 0, 0, 0);
  while (true) {
    const uint32_t seen = work_.now();  // before any look at what it counts
    if (stopping_) return;
    Next next = Next::sleep;
    try {
      const bool new_end = see_ended_ranks();
      const bool new_posts = take_posts();
      if (some_ended_ && (new_end || new_posts)) look_for_lost_ranks();
      next = advance();
    } catch (...) {
      fail(describe_failure(std::current_exception(), ""));
    }
    if (next == Next::sleep) work_.sleep(seen);
    if (next == Next::poll) work_.sleep(seen, ChangeCount::Clock::now() + kPollInterval);
  }
}

void World::stop_progress() {
  stopping_ = true;
  work_.tell();
}

World::Next World::advance() {
  if (failed_ || in_hand_.empty()) return Next::sleep;
  {
    // Whoever fails or withdraws from now on waits for the end of the round; who did before is seen here.
    const Round round(rounds_);
    drop_withdrawn();
    ready_.clear();
    if (!failed_) search();
    if (!ready_.empty()) perform_ready();
  }
  if (failed_) return Next::sleep;
  if (ready_.empty()) return foreign_after_ ? Next::poll : Next::sleep;
  finish_ready();
  return Next::again;
}

void World::drop_withdrawn() {
  const int withdrawals = withdrawals_;
  if (withdrawals == seen_withdrawals_) return;
  seen_withdrawals_ = withdrawals;
  ready_.clear();
  for (size_t index = 0; index < in_hand_.size(); ++index) {
    if (has_withdrawn_part(in_hand_[index])) ready_.push_back(index);
  }
  in_hand_.erase(ready_);
}

void World::search() {
  foreign_after_ = false;
  const auto most = static_cast<size_t>(memory_.copies_at_once());
  for (size_t index = 0; index < in_hand_.size() && ready_.size() < most; ++index) {
    const Operation& operation = in_hand_[index];
    if (!ready_.empty() && operation.kind != Kind::message) continue;
    bool is_ready = true;
    for (const Part& part : operation.parts) {
      if (may_start(part)) continue;
      is_ready = false;
      const auto* own = dynamic_cast<const RankTimeline*>(part.after.timeline);
      foreign_after_ = foreign_after_ || own == nullptr || &own->world != this;
    }
    if (!is_ready) continue;
    ready_.push_back(index);
    if (operation.kind != Kind::message) break;
  }
}

void World::perform_ready() {
  const auto begin = Trace::Clock::now();
  if (ready_.size() == 1) {
    const Operation& operation = in_hand_[ready_.front()];
    performer_.perform(operation.kind, operation.parts, failed_);
  } else {
    copies_.clear();
    for (const size_t index : ready_) {
      const std::vector<Part>& parts = in_hand_[index].parts;
      copies_.push_back({parts[0].input, parts[1].output});
    }
    memory_.copy_all(copies_, failed_);
  }
  const auto end = Trace::Clock::now();
  for (const size_t index : ready_) tell_observer(in_hand_[index], begin, end);
}

void World::tell_observer(const Operation& operation, Trace::Clock::time_point begin,
                          Trace::Clock::time_point end) const {
  if (observer_ == nullptr || operation.kind == Kind::barrier || operation.parts.size() == 1) return;
  using Direction = TransferObserver::Direction;
  for (const Part& part : operation.parts) {
    const Direction direction = operation.kind != Kind::message     ? Direction::both
                                : &part == &operation.parts.front() ? Direction::out
                                                                    : Direction::in;
    observer_->on_transfer({part.timeline, part.value}, direction, begin, end);
  }
}

void World::finish_ready() {
  for (const size_t index : ready_) {
    for (const Part& part : in_hand_[index].parts) finish_part(*part.timeline, part.value);
    spare_parts_.push_back(std::move(in_hand_[index].parts));
  }
  in_hand_.erase(ready_);
}

}  // namespace ringlet::threads
