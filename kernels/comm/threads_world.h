#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <tuple>
#include <utility>
#include <vector>

#include "kernels/comm.h"
#include "kernels/comm/change_count.h"
#include "kernels/comm/fifo.h"
#include "kernels/comm/post_queue.h"
#include "kernels/comm/threads.h"
#include "kernels/comm/threads_failure.h"
#include "kernels/comm/threads_operation.h"

namespace ringlet::threads {

class World;

/// The events of one rank's Comm, and what it has posted for them. Operations end in any order; `done` counts those of
/// the finished beginning.
class RankTimeline : public Timeline {
 public:
  RankTimeline(World& owner, int owner_rank) : world(owner), world_rank(owner_rank) {}
  bool reached(int64_t value) const override {
    return done.load(std::memory_order_acquire) >= value;
  }
  void wait(int64_t value) override;

  World& world;
  const int world_rank;
  std::atomic<int64_t> done{0};
  std::atomic<bool> withdrawn{false};  // its Comm is gone: what it posted must not be touched
  ChangeCount changed;                 // of done, of withdrawn, of the world's failure
  PostQueue posts;
  int64_t posted = 0, collectives = 0;  // events, collectives among them. Belong to the thread that calls the Comm
  Fifo<int> unfinished_parts;  // of done + 1, done + 2, ... Belongs to the progress thread
};

/// The ranks of one Comm, and what they have posted so far.
struct Group {
  using Route = std::pair<int, int>;  // source, destination: ranks of this group
  std::vector<int> members;           // world ranks
  std::vector<std::unique_ptr<RankTimeline>> timelines;  // one per member
  // The rest belongs to the progress thread.
  Fifo<Operation> collectives;        // posted by some: calls first_call, first_call + 1, ...
  int64_t first_call = 0;
  std::map<Route, Fifo<Part>> sends, receives;  // not yet matched
};

/// What the ranks of one run share. Ranks post parts; the progress thread takes them, and performs an operation
/// when all its parts are there and their `after` events are reached. What it has taken belongs to it alone, so a step
/// takes no lock, and once its queues are as long as they get it allocates nothing. After the first failure
/// nothing is performed any more, and every call of a rank throws PeerFailed; it throws only when
/// the progress thread has let go of all tensors, so that they may be freed.
class World {
 public:
  explicit World(const ThreadsOptions& options);
  World(const World&) = delete;
  World& operator=(const World&) = delete;

  int size() const { return static_cast<int>(ranks_.size()); }
  Group& root() { return *groups_.front(); }
  Trace& trace(int world_rank) { return ranks_[static_cast<size_t>(world_rank)].trace; }

  // ---- called by rank threads ----
  Event start_exchange(RankTimeline& timeline, std::span<const Message> sends,
                       std::span<const Message> receives, Event after);
  Event start_collective(RankTimeline& timeline, Kind kind, const Part& part);
  void wait(RankTimeline& timeline, int64_t value);
  /// The group of the ranks that gave `color` in the split number `split` of `parent`.
  Group& subgroup(Group& parent, int64_t split, int64_t color, const std::vector<int>& members);
  /// After it returns nothing that was posted on this timeline is touched again.
  void withdraw(RankTimeline& timeline);
  bool failed() const { return failed_; }
  RankMemory& memory() { return memory_; }

  // ---- called by run_ranks ----
  void progress();       // the progress thread: returns after stop_progress
  void stop_progress();
  void fail(Failure failure);
  void end_rank(int world_rank);
  /// Returns when every rank has ended, or `grace` after a failure.
  void wait_for_ranks(std::chrono::milliseconds grace);
  bool ended(int world_rank) const { return ranks_[static_cast<size_t>(world_rank)].ended; }
  /// The first failure, if there was one.
  std::optional<Failure> failure();

 private:
  struct Rank {
    Trace trace;
    std::atomic<bool> ended{false};
    bool seen_ended = false;  // by the progress thread, before it took what was posted last
  };
  enum class Next : uint8_t { again, poll, sleep };

  // threads_world.cpp: on ranks' threads
  Post new_post(RankTimeline& timeline, Event after);
  void push(RankTimeline& timeline, const Post& post);

  // threads_matching.cpp: on the progress thread
  bool take_posts();
  void accept(Group& group, int rank, const Post& post);
  void accept_message(Group& group, int rank, const Post& post);
  void accept_collective(Group& group, int rank, const Post& post);
  Operation new_operation(Kind kind, size_t part_count);
  void match(Operation operation);
  static bool has_withdrawn_part(const Operation& operation);
  void finish_part(RankTimeline& timeline, int64_t value);

  // threads_progress.cpp: on the progress thread
  Next advance();
  void drop_withdrawn();
  void search();
  void perform_ready();
  void tell_observer(const Operation& operation, Trace::Clock::time_point begin,
                     Trace::Clock::time_point end) const;
  void finish_ready();

  // threads_watchdog.cpp: on any thread
  [[noreturn]] void throw_failure();
  void wait_until_quiet();
  std::vector<RankView> rank_views() const;
  // threads_watchdog.cpp: on the progress thread
  bool see_ended_ranks();
  void look_for_lost_ranks();
  std::optional<Failure> find_unfinished() const;
  std::optional<Failure> find_lost_wait() const;
  std::optional<Failure> lost_wait(int missing_rank, int waiting_rank) const;

  const std::chrono::milliseconds timeout_;
  TransferObserver* const observer_;  // or absent
  const std::unique_ptr<RankMemory> host_memory_;
  RankMemory& memory_;
  std::deque<Rank> ranks_;

  // Guarded by the mutex, which a step does not take.
  std::mutex mutex_;
  std::deque<std::unique_ptr<Group>> groups_;  // the first holds all ranks
  std::map<std::tuple<const Group*, int64_t, int64_t>, Group*> splits_;
  std::optional<Failure> failure_;
  std::chrono::steady_clock::time_point failure_time_;
  std::condition_variable rank_ended_;

  // What the progress thread has to look at. Whoever changes it tells `work_`.
  ChangeCount work_;  // these, posts, ends of ranks
  std::atomic<size_t> group_count_{0};
  std::atomic<int> withdrawals_{0};
  std::atomic<bool> failed_{false}, stopping_{false};
  /// Odd while the progress thread uses tensors and foreign timelines, even otherwise.
  ChangeCount rounds_;

  // Belongs to the progress thread.
  std::vector<Group*> known_groups_;
  bool some_ended_ = false;
  int seen_withdrawals_ = 0;
  Fifo<Operation> in_hand_;  // all their parts are there
  std::vector<std::vector<Part>> spare_parts_;
  Performer performer_;
  std::vector<size_t> ready_;   // of in_hand_, ascending: messages that are copied together, or one operation
  std::vector<RankMemory::Copy> copies_;
  bool foreign_after_ = false;  // some `after` is on a timeline that does not wake this world
};

}  // namespace ringlet::threads
