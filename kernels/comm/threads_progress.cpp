// The progress thread: takes what the ranks have matched, and performs it as soon as it may start.

#include <algorithm>
#include <iterator>

#include <fmt/format.h>

#include "kernels/comm/threads_world.h"

namespace ringlet::threads {
namespace {

/// How often events of foreign timelines are looked at; they cannot wake this thread.
constexpr std::chrono::microseconds kPollInterval{100};

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
    if (found.ready < in_hand_.size()) perform_observed(in_hand_[found.ready]);
  } catch (...) {
    failure = describe_failure(std::current_exception(), "");
  }
  lock.lock();
  busy_ = false;
  ++rounds_;
  quiet_.notify_all();
  if (failure) fail_locked(*failure);
  if (failed_) return Next::sleep;
  if (found.ready == in_hand_.size()) return found.foreign_after ? Next::poll : Next::sleep;
  for (const Part& part : in_hand_[found.ready].parts) finish_part(*part.timeline, part.value);
  in_hand_.erase(in_hand_.begin() + static_cast<std::ptrdiff_t>(found.ready));
  return Next::again;
}

void World::perform_observed(const Operation& operation) const {
  const auto begin = std::chrono::steady_clock::now();
  perform(operation, memory_, failed_);
  if (observer_ == nullptr || operation.kind == Kind::barrier || operation.parts.size() == 1) return;
  const auto end = std::chrono::steady_clock::now();
  using Direction = TransferObserver::Direction;
  for (const Part& part : operation.parts) {
    const Direction direction = operation.kind != Kind::message     ? Direction::both
                                : &part == &operation.parts.front() ? Direction::out
                                                                    : Direction::in;
    observer_->on_transfer({part.timeline, part.value}, direction, begin, end);
  }
}

World::Search World::search() const {
  Search found{in_hand_.size(), false};
  for (size_t index = 0; index < in_hand_.size(); ++index) {
    bool is_ready = true;
    for (const Part& part : in_hand_[index].parts) {
      if (may_start(part)) continue;
      is_ready = false;
      const auto* own = dynamic_cast<const RankTimeline*>(part.after.timeline);
      found.foreign_after = found.foreign_after || own == nullptr || &own->world != this;
    }
    if (is_ready) return {index, false};
  }
  return found;
}

}  // namespace ringlet::threads
