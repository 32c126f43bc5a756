// What ranks have posted becomes operations whose parts are all there.

#include <algorithm>

#include <fmt/format.h>

#include "kernels/comm/threads_world.h"

namespace ringlet::threads {

bool World::take_posts() {
  if (group_count_ != known_groups_.size()) {
    const std::lock_guard lock(mutex_);
    for (size_t i = known_groups_.size(); i < groups_.size(); ++i) known_groups_.push_back(groups_[i].get());
  }
  bool any = false;
  for (Group* const group : known_groups_) {
    for (size_t rank = 0; rank < group->timelines.size(); ++rank) {
      PostQueue& posts = group->timelines[rank]->posts;
      for (const Post* post = posts.front(); post != nullptr; post = posts.front()) {
        accept(*group, static_cast<int>(rank), *post);
        posts.pop();
        any = true;
      }
    }
  }
  return any;
}

void World::accept(Group& group, int rank, const Post& post) {
  RankTimeline& timeline = *post.part.timeline;
  if (failed_ || timeline.withdrawn) return;
  const bool is_first_of_event =
      post.part.value > timeline.done + static_cast<int64_t>(timeline.unfinished_parts.size());
  if (is_first_of_event) timeline.unfinished_parts.push_back(post.event_parts);
  if (post.kind == Kind::message) accept_message(group, rank, post);
  else accept_collective(group, rank, post);
}

void World::accept_message(Group& group, int rank, const Post& post) {
  const bool is_send = bool(post.part.input);
  const int peer = static_cast<int>(post.number);
  const Group::Route route = is_send ? Group::Route{rank, peer} : Group::Route{peer, rank};
  Fifo<Part>& others = (is_send ? group.receives : group.sends)[route];
  if (others.empty()) return (is_send ? group.sends : group.receives)[route].push_back(post.part);
  Operation message = new_operation(Kind::message, 2);
  message.parts[is_send ? 0 : 1] = post.part;
  message.parts[is_send ? 1 : 0] = others.front();
  others.pop_front();
  match(std::move(message));
}

void World::accept_collective(Group& group, int rank, const Post& post) {
  const auto index = static_cast<size_t>(post.number - group.first_call);
  // All ranks call in the same order, so at most one call is new.
  if (index == group.collectives.size()) {
    group.collectives.push_back(new_operation(post.kind, group.members.size()));
  }
  Operation& operation = group.collectives[index];
  if (operation.kind != post.kind) {
    return fail(make_failure(
        fmt::format("rank {} calls {} where rank {} calls {}", post.part.world_rank, name_of(post.kind),
                    std::ranges::find_if(operation.parts, &Part::is_posted)->world_rank,
                    name_of(operation.kind)),
        "All ranks have to call the same operations in the same order."));
  }
  operation.parts[static_cast<size_t>(rank)] = post.part;
  if (!std::ranges::all_of(operation.parts, &Part::is_posted)) return;
  match(std::move(group.collectives.front()));  // all have posted it, and so all calls before it
  group.collectives.pop_front();
  ++group.first_call;
}

Operation World::new_operation(Kind kind, size_t part_count) {
  Operation operation{kind, {}};
  if (!spare_parts_.empty()) {
    operation.parts = std::move(spare_parts_.back());
    spare_parts_.pop_back();
  }
  operation.parts.assign(part_count, {});
  return operation;
}

bool World::has_withdrawn_part(const Operation& operation) {
  return std::ranges::any_of(operation.parts, [](const Part& part) { return part.timeline->withdrawn.load(); });
}

void World::match(Operation operation) {
  try {
    check_parts(operation);
  } catch (const Error& error) {
    return fail(make_failure(error.what(), error.advice));
  }
  // A part may have been given up long before the other one came. Those given up later drop_withdrawn() finds.
  if (!has_withdrawn_part(operation)) in_hand_.push_back(std::move(operation));
}

void World::finish_part(RankTimeline& timeline, int64_t value) {
  if (timeline.withdrawn) return;
  Fifo<int>& unfinished = timeline.unfinished_parts;
  --unfinished[static_cast<size_t>(value - timeline.done - 1)];
  if (unfinished.front() > 0) return;
  while (!unfinished.empty() && unfinished.front() == 0) {
    unfinished.pop_front();
    timeline.done.fetch_add(1, std::memory_order_release);
  }
  timeline.changed.tell();
}

}  // namespace ringlet::threads
