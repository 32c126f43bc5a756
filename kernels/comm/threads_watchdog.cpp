// Waiting, and all the ways in which it ends badly.

#include <algorithm>

#include <fmt/format.h>

#include "kernels/comm/threads_world.h"

namespace ringlet::threads {
namespace {

constexpr int kSpins = 200;  // few: ranks may exceed cores

}  // namespace

void RankTimeline::wait(int64_t value) {
  for (int spin = 0; spin < kSpins; ++spin) {
    if (reached(value)) return;
  }
  world.wait(*this, value);
}

void World::wait(RankTimeline& timeline, int64_t value) {
  Lock lock(mutex_);
  Rank& rank = ranks_[static_cast<size_t>(timeline.world_rank)];
  rank.trace.set_waiting(++rank.waits > 0);
  auto deadline = Trace::Clock::now() + timeout_;
  const auto is_over = [&] { return timeline.reached(value) || timeline.withdrawn || failed_; };
  while (!timeline.changed.wait_until(lock, deadline, is_over)) {
    const std::vector<RankView> ranks = rank_views();
    deadline = end_of_patience(ranks, timeout_);
    if (deadline <= Trace::Clock::now()) {
      fail_locked(timeout_failure(ranks, timeline.world_rank, timeout_));
    }
  }
  rank.trace.set_waiting(--rank.waits > 0);
  if (timeline.reached(value)) return;
  if (failed_) throw_failure(lock);
  throw Error("a message was given up, because its Comm was destroyed by an error");
}

void World::fail(Failure failure) {
  const Lock lock(mutex_);
  fail_locked(std::move(failure));
}

void World::fail_locked(Failure failure) {
  if (failed_) {
    if (failure_->of_a_peer && !failure.of_a_peer) failure_ = std::move(failure);
    return;
  }
  failure_ = std::move(failure);
  failure_time_ = std::chrono::steady_clock::now();
  failed_ = true;
  wake_progress();
  rank_ended_.notify_all();
  for (const auto& group : groups_) {
    for (const auto& timeline : group->timelines) timeline->changed.notify_all();
  }
}

void World::throw_failure(Lock& lock) {
  quiet_.wait(lock, [this] { return !busy_; });
  throw PeerFailed(failure_->cause, failure_->advice);
}

void World::check_peers(Lock& lock) {
  if (std::ranges::any_of(ranks_, &Rank::ended)) {
    if (auto lost = find_lost_wait()) fail_locked(*lost);
  }
  if (failed_) throw_failure(lock);
}

std::vector<RankView> World::rank_views() const {
  std::vector<RankView> views;
  for (const Rank& rank : ranks_) {
    const int number = static_cast<int>(views.size());
    views.push_back(
        {number, rank.waits > 0, rank.ended, rank.trace.place(), rank.trace.last_sign()});
  }
  return views;
}

void World::end_rank(int world_rank) {
  const Lock lock(mutex_);
  ranks_[static_cast<size_t>(world_rank)].ended = true;
  rank_ended_.notify_all();
  if (failed_) return;
  if (auto unfinished = unfinished_of(world_rank)) return fail_locked(*unfinished);
  if (auto lost = find_lost_wait()) fail_locked(*lost);
}

std::optional<Failure> World::unfinished_of(int world_rank) const {
  for (const auto& group : groups_) {
    for (const auto& timeline : group->timelines) {
      if (timeline->world_rank != world_rank || timeline->unfinished_parts.empty()) continue;
      const Trace& trace = ranks_[static_cast<size_t>(world_rank)].trace;
      return make_failure(fmt::format("rank {} ended with messages in flight ({})", world_rank,
                                      describe_place(trace.place())),
                          "A rank has to wait for its last events before it returns.");
    }
  }
  return {};
}

std::optional<Failure> World::find_lost_wait() const {
  for (const auto& group : groups_) {
    const auto world_rank = [&](int rank) { return group->members[static_cast<size_t>(rank)]; };
    for (const auto& [route, parts] : group->sends) {
      if (parts.empty()) continue;
      if (auto lost = lost_wait(world_rank(route.second), world_rank(route.first))) return lost;
    }
    for (const auto& [route, parts] : group->receives) {
      if (parts.empty()) continue;
      if (auto lost = lost_wait(world_rank(route.first), world_rank(route.second))) return lost;
    }
    for (const auto& [call, operation] : group->collectives) {
      const auto is_posted = [](const Part& part) { return part.timeline != nullptr; };
      const auto waiting = std::ranges::find_if(operation.parts, is_posted);
      for (size_t rank = 0; rank < operation.parts.size(); ++rank) {
        if (is_posted(operation.parts[rank])) continue;
        if (auto lost = lost_wait(group->members[rank], waiting->world_rank)) return lost;
      }
    }
  }
  return {};
}

std::optional<Failure> World::lost_wait(int missing_rank, int waiting_rank) const {
  if (!ranks_[static_cast<size_t>(missing_rank)].ended) return {};
  const Trace& trace = ranks_[static_cast<size_t>(waiting_rank)].trace;
  return make_failure(fmt::format("rank {} ended while rank {} waits for it ({})", missing_rank,
                                  waiting_rank, describe_place(trace.place())),
                      "Every rank has to take part in all operations of its group.");
}

void World::wait_for_ranks(std::chrono::milliseconds grace) {
  Lock lock(mutex_);
  const auto all_ended = [this] { return std::ranges::all_of(ranks_, &Rank::ended); };
  rank_ended_.wait(lock, [&] { return failed_ || all_ended(); });
  rank_ended_.wait_until(lock, failure_time_ + grace, all_ended);
}

bool World::ended(int world_rank) {
  const Lock lock(mutex_);
  return ranks_[static_cast<size_t>(world_rank)].ended;
}

std::optional<Failure> World::failure() {
  const Lock lock(mutex_);
  return failure_;
}

}  // namespace ringlet::threads
