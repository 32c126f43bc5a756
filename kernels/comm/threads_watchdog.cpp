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
  Trace& trace = this->trace(timeline.world_rank);
  trace.begin_wait();
  auto deadline = Trace::Clock::now() + timeout_;
  while (true) {
    const uint32_t seen = timeline.changed.now();
    if (timeline.reached(value) || timeline.withdrawn || failed_) break;
    if (timeline.changed.sleep(seen, deadline)) continue;
    const std::vector<RankView> ranks = rank_views();
    deadline = end_of_patience(ranks, timeout_);
    if (deadline <= Trace::Clock::now()) fail(timeout_failure(ranks, timeline.world_rank, timeout_));
  }
  trace.end_wait();
  if (timeline.reached(value)) return;
  if (failed_) throw_failure();
  throw Error("a message was given up, because its Comm was destroyed by an error");
}

void World::fail(Failure failure) {
  const std::lock_guard lock(mutex_);
  if (failed_) {
    if (failure_->of_a_peer && !failure.of_a_peer) failure_ = std::move(failure);
    return;
  }
  failure_ = std::move(failure);
  failure_time_ = std::chrono::steady_clock::now();
  failed_ = true;
  work_.tell();
  rank_ended_.notify_all();
  for (const auto& group : groups_) {
    for (const auto& timeline : group->timelines) timeline->changed.tell();
  }
}

void World::throw_failure() {
  wait_until_quiet();
  const std::lock_guard lock(mutex_);
  throw PeerFailed(failure_->cause, failure_->advice);
}

void World::wait_until_quiet() {
  const uint32_t round = rounds_.now();
  while (round % 2 == 1 && rounds_.now() == round) rounds_.sleep(round);
}

std::vector<RankView> World::rank_views() const {
  std::vector<RankView> views;
  for (const Rank& rank : ranks_) {
    const int number = static_cast<int>(views.size());
    views.push_back(
        {number, rank.trace.waiting(), rank.ended, rank.trace.place(), rank.trace.last_sign()});
  }
  return views;
}

void World::end_rank(int world_rank) {
  {
    const std::lock_guard lock(mutex_);
    ranks_[static_cast<size_t>(world_rank)].ended = true;
    rank_ended_.notify_all();
  }
  work_.tell();
}

bool World::see_ended_ranks() {
  bool any_new = false;
  for (Rank& rank : ranks_) {
    if (rank.seen_ended || !rank.ended) continue;
    rank.seen_ended = any_new = some_ended_ = true;
  }
  return any_new;
}

void World::look_for_lost_ranks() {
  if (failed_) return;
  if (auto unfinished = find_unfinished()) return fail(*unfinished);
  if (auto lost = find_lost_wait()) fail(*lost);
}

std::optional<Failure> World::find_unfinished() const {
  for (const Group* group : known_groups_) {
    for (const auto& timeline : group->timelines) {
      const Rank& rank = ranks_[static_cast<size_t>(timeline->world_rank)];
      if (!rank.seen_ended || timeline->withdrawn || timeline->unfinished_parts.empty()) continue;
      return make_failure(fmt::format("rank {} ended with messages in flight ({})", timeline->world_rank,
                                      describe_place(rank.trace.place())),
                          "A rank has to wait for its last events before it returns.");
    }
  }
  return {};
}

std::optional<Failure> World::find_lost_wait() const {
  for (const Group* group : known_groups_) {
    const auto world_rank = [&](int rank) { return group->members[static_cast<size_t>(rank)]; };
    for (const auto& [route, parts] : group->sends) {
      if (parts.empty()) continue;
      if (auto lost = lost_wait(world_rank(route.second), world_rank(route.first))) return lost;
    }
    for (const auto& [route, parts] : group->receives) {
      if (parts.empty()) continue;
      if (auto lost = lost_wait(world_rank(route.first), world_rank(route.second))) return lost;
    }
    for (size_t call = 0; call < group->collectives.size(); ++call) {
      const std::vector<Part>& parts = group->collectives[call].parts;
      const auto waiting = std::ranges::find_if(parts, &Part::is_posted);
      for (size_t rank = 0; rank < parts.size(); ++rank) {
        if (parts[rank].is_posted()) continue;
        if (auto lost = lost_wait(group->members[rank], waiting->world_rank)) return lost;
      }
    }
  }
  return {};
}

std::optional<Failure> World::lost_wait(int missing_rank, int waiting_rank) const {
  if (!ranks_[static_cast<size_t>(missing_rank)].seen_ended) return {};
  const Trace& trace = ranks_[static_cast<size_t>(waiting_rank)].trace;
  return make_failure(fmt::format("rank {} ended while rank {} waits for it ({})", missing_rank,
                                  waiting_rank, describe_place(trace.place())),
                      "Every rank has to take part in all operations of its group.");
}

void World::wait_for_ranks(std::chrono::milliseconds grace) {
  std::unique_lock lock(mutex_);
  const auto all_ended = [this] {
    return std::ranges::all_of(ranks_, [](const Rank& rank) { return rank.ended.load(); });
  };
  rank_ended_.wait(lock, [&] { return failed_ || all_ended(); });
  rank_ended_.wait_until(lock, failure_time_ + grace, all_ended);
}

std::optional<Failure> World::failure() {
  const std::lock_guard lock(mutex_);
  return failure_;
}

}  // namespace ringlet::threads
