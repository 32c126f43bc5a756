#include "kernels/comm/threads_world.h"

#include <algorithm>

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

bool travels(const Message& message) { return message.tensor.size() > 0; }

}  // namespace

World::World(const ThreadsOptions& options)
    : timeout_(std::min(options.timeout, kLongestTimeout)),
      observer_(options.observer),
      host_memory_(make_host_memory()),
      memory_(options.memory != nullptr ? *options.memory : *host_memory_),
      performer_(memory_) {
  std::vector<int> members;
  for (int rank = 0; rank < options.ranks; ++rank) {
    members.push_back(rank);
    ranks_.emplace_back();
  }
  groups_.push_back(make_group(*this, members));
  group_count_ = 1;
}

Group& World::subgroup(Group& parent, int64_t split, int64_t color,
                       const std::vector<int>& members) {
  const std::lock_guard lock(mutex_);
  Group*& group = splits_[{&parent, split, color}];
  if (group == nullptr) group = groups_.emplace_back(make_group(*this, members)).get();
  group_count_ = groups_.size();
  return *group;
}

Event World::start_exchange(RankTimeline& timeline, std::span<const Message> sends,
                            std::span<const Message> receives, Event after) {
  const auto count = std::ranges::count_if(sends, travels) + std::ranges::count_if(receives, travels);
  if (count == 0 && !failed_) return {&timeline, timeline.posted};  // done as soon as those before it are
  Post post = new_post(timeline, after);
  post.event_parts = static_cast<int>(count);
  for (const Message& message : sends) {
    if (!travels(message)) continue;
    post.part.input = message.tensor;
    post.number = message.peer;
    push(timeline, post);
  }
  post.part.input = {};
  for (const Message& message : receives) {
    if (!travels(message)) continue;
    post.part.output = message.tensor;
    post.number = message.peer;
    push(timeline, post);
  }
  work_.tell();
  return {&timeline, post.part.value};
}

Event World::start_collective(RankTimeline& timeline, Kind kind, const Part& part) {
  Post post = new_post(timeline, part.after);
  post.kind = kind;
  post.number = timeline.collectives++;
  post.part.input = part.input;
  post.part.output = part.output;
  post.part.root = part.root;
  push(timeline, post);
  work_.tell();
  return {&timeline, post.part.value};
}

Post World::new_post(RankTimeline& timeline, Event after) {
  if (failed_) throw_failure();
  trace(timeline.world_rank).sign_of_life();
  Post post;
  post.part.after = after;
  post.part.world_rank = timeline.world_rank;
  post.part.timeline = &timeline;
  post.part.value = ++timeline.posted;
  return post;
}

void World::push(RankTimeline& timeline, const Post& post) {
  constexpr std::chrono::milliseconds kLook{1};
  while (!timeline.posts.push(post)) {
    // The progress thread is in a long copy; it does not tell when it takes posts. Nor does this count as waiting.
    if (failed_) throw_failure();
    work_.tell();
    timeline.changed.sleep(timeline.changed.now(), ChangeCount::Clock::now() + kLook);
  }
}

void World::withdraw(RankTimeline& timeline) {
  timeline.withdrawn = true;
  ++withdrawals_;
  timeline.changed.tell();
  wait_until_quiet();
}

}  // namespace ringlet::threads
