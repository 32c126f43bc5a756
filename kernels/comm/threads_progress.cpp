// The progress thread: takes what the ranks have matched, and performs it as soon as it may start.

#include <sys/prctl.h>

#include <algorithm>
#include <iterator>
#include <ranges>

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

bool has_withdrawn_part(const Operation& operation) {
  return std::ranges::any_of(operation.parts,
                             [](const Part& part) { return part.timeline->withdrawn; });
}

}  // namespace

void World::progress() {
  prctl(PR_SET_TIMERSLACK, kTimerSlackNanoseconds, 0, 0, 0);
  Lock lock(mutex_);
  while (!stopping_) {
    take_matched();
    const Next next = advance(lock);
    if (next == Next::again) continue;
    const auto has_work = [this] { return work_; };
    if (next == Next::poll) work_changed_.wait_for(lock, kPollInterval, has_work);
    else work_changed_.wait(lock, has_work);
    work_ = false;
  }
}

void World::stop_progress() {
  const Lock lock(mutex_);
  stopping_ = true;
  wake_progress();
}

void World::take_matched() {
  std::ranges::move(matched_, std::back_inserter(in_hand_));
  matched_.clear();
  if (some_withdrawn_) std::erase_if(in_hand_, has_withdrawn_part);
  some_withdrawn_ = false;
}

World::Next World::advance(Lock& lock) {
  if (failed_ || in_hand_.empty()) return Next::sleep;
  busy_ = true;
  lock.unlock();
  Search found;
  std::optional<Failure> failure;
  try {
    found = search();
    if (!found.ready.empty()) perform_ready(found.ready);
  } catch (...) {
    failure = describe_failure(std::current_exception(), "");
  }
  lock.lock();
  busy_ = false;
  ++rounds_;
  quiet_.notify_all();
  if (failure) fail_locked(*failure);
  if (failed_) return Next::sleep;
  if (found.ready.empty()) return found.foreign_after ? Next::poll : Next::sleep;
  for (const size_t index : found.ready) {
    for (const Part& part : in_hand_[index].parts) finish_part(*part.timeline, part.value);
  }
  for (const size_t index : std::views::reverse(found.ready)) {
    in_hand_.erase(in_hand_.begin() + static_cast<std::ptrdiff_t>(index));
  }
  return Next::again;
}

void World::perform_ready(const std::vector<size_t>& ready) const {
  const auto begin = Trace::Clock::now();
  if (ready.size() == 1) {
    perform(in_hand_[ready.front()], memory_, failed_);
  } else {
    std::vector<RankMemory::Copy> copies;
    for (const size_t index : ready) {
      const std::vector<Part>& parts = in_hand_[index].parts;
      copies.push_back({parts[0].input, parts[1].output});
    }
    memory_.copy_all(copies, failed_);
  }
  const auto end = Trace::Clock::now();
  for (const size_t index : ready) tell_observer(in_hand_[index], begin, end);
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

World::Search World::search() const {
  Search found;
  const size_t most = size_t(memory_.copies_at_once());
  for (size_t index = 0; index < in_hand_.size() && found.ready.size() < most; ++index) {
    const Operation& operation = in_hand_[index];
    if (!found.ready.empty() && operation.kind != Kind::message) continue;
    bool is_ready = true;
    for (const Part& part : operation.parts) {
      if (may_start(part)) continue;
      is_ready = false;
      const auto* own = dynamic_cast<const RankTimeline*>(part.after.timeline);
      found.foreign_after = found.foreign_after || own == nullptr || &own->world != this;
    }
    if (!is_ready) continue;
    found.ready.push_back(index);
    if (operation.kind != Kind::message) break;
  }
  return found;
}

}  // namespace ringlet::threads
