#include "kernels/comm/threads_world.h"

#include <algorithm>

#include <fmt/format.h>

namespace ringlet::threads {
namespace {

/// Longer timeouts are cut to this, so that a point in time does not overflow.
constexpr std::chrono::milliseconds kLongestTimeout = std::chrono::hours(24 * 365);

std::unique_ptr<Group> make_group(World& world, const std::vector<int>& members) {
  auto group = std::make_unique<Group>();
  group->members = members;
  for (const int member : members) {
    group->timelines.push_back(std::make_unique<RankTimeline>(world, member));
  }
  return group;
}

}  // namespace

World::World(const ThreadsOptions& options)
    : timeout_(std::min(options.timeout, kLongestTimeout)),
      observer_(options.observer),
      host_memory_(make_host_memory()),
      memory_(options.memory != nullptr ? *options.memory : *host_memory_) {
  std::vector<int> members;
  for (int rank = 0; rank < options.ranks; ++rank) {
    members.push_back(rank);
    ranks_.emplace_back();
  }
  groups_.push_back(make_group(*this, members));
}

Group& World::subgroup(Group& parent, int64_t call, int64_t color,
                       const std::vector<int>& members) {
  const Lock lock(mutex_);
  Group*& group = splits_[{&parent, call, color}];
  if (group == nullptr) group = groups_.emplace_back(make_group(*this, members)).get();
  return *group;
}

Event World::start_exchange(Group& group, int rank, std::span<const Message> sends,
                            std::span<const Message> receives, Event after) {
  Lock lock(mutex_);
  check_peers(lock);
  const auto is_sent = [](const Message& message) { return message.tensor.size() > 0; };
  const int count = static_cast<int>(std::ranges::count_if(sends, is_sent) +
                                     std::ranges::count_if(receives, is_sent));
  Part part = new_part(group, rank, after, std::max(count, 1));
  for (const Message& message : sends) {
    if (!is_sent(message)) continue;
    part.input = message.tensor;
    post_send(group, {rank, message.peer}, part);
  }
  for (const Message& message : receives) {
    if (!is_sent(message)) continue;
    part.output = message.tensor;
    post_receive(group, {message.peer, rank}, part);
  }
  if (count == 0) {
    // Nothing to match: it ends as soon as those before it have.
    finish_part(*part.timeline, part.value);
    wake_progress();
  }
  check_peers(lock);
  return {part.timeline, part.value};
}

Event World::start_collective(Group& group, int rank, int64_t call, Kind kind, Part part) {
  Lock lock(mutex_);
  check_peers(lock);
  const Part posted = new_part(group, rank, part.after, 1);
  part.world_rank = posted.world_rank;
  part.timeline = posted.timeline;
  part.value = posted.value;

  const auto [entry, is_first] = group.collectives.try_emplace(call);
  Operation& operation = entry->second;
  if (is_first) operation = {kind, std::vector<Part>(group.members.size())};
  const auto is_posted = [](const Part& other) { return other.timeline != nullptr; };
  if (operation.kind != kind) {
    fail_locked(make_failure(
        fmt::format("rank {} calls {} where rank {} calls {}", part.world_rank, name_of(kind),
                    std::ranges::find_if(operation.parts, is_posted)->world_rank,
                    name_of(operation.kind)),
        "All ranks have to call the same operations in the same order."));
  } else {
    operation.parts[static_cast<size_t>(rank)] = part;
  }
  if (std::ranges::all_of(operation.parts, is_posted)) {
    match(std::move(operation));
    group.collectives.erase(entry);
  }
  check_peers(lock);
  return {part.timeline, part.value};
}

Part World::new_part(Group& group, int rank, Event after, int part_count) {
  RankTimeline& timeline = *group.timelines[static_cast<size_t>(rank)];
  timeline.unfinished_parts.push_back(part_count);
  ranks_[static_cast<size_t>(timeline.world_rank)].trace.sign_of_life();
  Part part;
  part.after = after;
  part.world_rank = timeline.world_rank;
  part.timeline = &timeline;
  part.value = timeline.done + static_cast<int64_t>(timeline.unfinished_parts.size());
  return part;
}

void World::post_send(Group& group, Group::Route route, const Part& part) {
  std::deque<Part>& receives = group.receives[route];
  if (receives.empty()) return group.sends[route].push_back(part);
  match({Kind::message, {part, receives.front()}});
  receives.pop_front();
}

void World::post_receive(Group& group, Group::Route route, const Part& part) {
  std::deque<Part>& sends = group.sends[route];
  if (sends.empty()) return group.receives[route].push_back(part);
  match({Kind::message, {sends.front(), part}});
  sends.pop_front();
}

void World::match(Operation operation) {
  try {
    check_parts(operation);
  } catch (const Error& error) {
    return fail_locked(make_failure(error.what(), error.advice));
  }
  for (const Part& part : operation.parts) some_withdrawn_ |= part.timeline->withdrawn;
  matched_.push_back(std::move(operation));
  wake_progress();
}

void World::finish_part(RankTimeline& timeline, int64_t value) {
  if (timeline.withdrawn) return;
  std::deque<int>& unfinished = timeline.unfinished_parts;
  --unfinished[static_cast<size_t>(value - timeline.done - 1)];
  while (!unfinished.empty() && unfinished.front() == 0) {
    unfinished.pop_front();
    timeline.done.fetch_add(1, std::memory_order_release);
    timeline.changed.notify_all();
  }
}

void World::wake_progress() {
  work_ = true;
  work_changed_.notify_one();
}

void World::withdraw(RankTimeline& timeline) {
  Lock lock(mutex_);
  timeline.withdrawn = some_withdrawn_ = true;
  timeline.unfinished_parts.clear();
  timeline.changed.notify_all();
  const int64_t round = rounds_;
  quiet_.wait(lock, [&] { return !busy_ || rounds_ > round; });
}

}  // namespace ringlet::threads
