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
#include "kernels/comm/threads.h"
#include "kernels/comm/threads_failure.h"
#include "kernels/comm/threads_operation.h"

namespace ringlet::threads {

class World;

/// The events of one rank's Comm. Operations end in any order; `done` counts those of the finished
/// beginning.
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
  // The rest is guarded by the world's mutex.
  std::deque<int> unfinished_parts;  // of the operations done + 1, done + 2, ...
  bool withdrawn = false;            // its Comm is gone: what it posted must not be touched
  std::condition_variable changed;
};

/// The ranks of one Comm and what they have posted so far. Guarded by the world's mutex.
struct Group {
  using Route = std::pair<int, int>;  // source, destination: ranks of this group
  std::vector<int> members;           // world ranks
  std::vector<std::unique_ptr<RankTimeline>> timelines;  // one per member
  std::map<int64_t, Operation> collectives;  // posted by some, by the number of the call
  std::map<Route, std::deque<Part>> sends, receives;  // not yet matched
};

/// What the ranks of one run share. Ranks post parts; the progress thread performs an operation
/// when all its parts are posted and their `after` events are reached. After the first failure
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
  Event start_exchange(Group& group, int rank, std::span<const Message> sends,
                       std::span<const Message> receives, Event after);
  /// `call`: the number of this collective among the group's, from 0.
  Event start_collective(Group& group, int rank, int64_t call, Kind kind, Part part);
  void wait(RankTimeline& timeline, int64_t value);
  /// The group of the ranks that gave `color` in the split that was call number `call` of `parent`.
  Group& subgroup(Group& parent, int64_t call, int64_t color, const std::vector<int>& members);
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
  bool ended(int world_rank);
  /// The first failure, if there was one.
  std::optional<Failure> failure();

 private:
  using Lock = std::unique_lock<std::mutex>;
  struct Rank {
    Trace trace;
    int waits = 0;  // of its threads
    bool ended = false;
  };
  enum class Next : uint8_t { again, poll, sleep };
  /// What the progress thread found among the operations in hand.
  struct Search {
    std::vector<size_t> ready;   // indices, ascending: messages that are copied together, or one operation
    bool foreign_after = false;  // some `after` is on a timeline that does not wake this world
  };

  // threads_world.cpp: the lock is held
  Part new_part(Group& group, int rank, Event after, int part_count);
  void post_send(Group& group, Group::Route route, const Part& part);
  void post_receive(Group& group, Group::Route route, const Part& part);
  void match(Operation operation);
  void finish_part(RankTimeline& timeline, int64_t value);
  void wake_progress();

  // threads_progress.cpp: the lock is held, but for search
  void take_matched();
  Next advance(Lock& lock);
  Search search() const;
  void perform_ready(const std::vector<size_t>& ready) const;
  void tell_observer(const Operation& operation, Trace::Clock::time_point begin,
                     Trace::Clock::time_point end) const;

  // threads_watchdog.cpp: the lock is held
  void fail_locked(Failure failure);
  [[noreturn]] void throw_failure(Lock& lock);
  void check_peers(Lock& lock);
  std::vector<RankView> rank_views() const;
  std::optional<Failure> unfinished_of(int world_rank) const;
  std::optional<Failure> find_lost_wait() const;
  std::optional<Failure> lost_wait(int missing_rank, int waiting_rank) const;

  const std::chrono::milliseconds timeout_;
  TransferObserver* const observer_;  // or absent
  const std::unique_ptr<RankMemory> host_memory_;
  RankMemory& memory_;
  std::mutex mutex_;
  std::deque<Rank> ranks_;
  std::deque<std::unique_ptr<Group>> groups_;  // the first holds all ranks
  std::map<std::tuple<const Group*, int64_t, int64_t>, Group*> splits_;
  std::atomic<bool> failed_{false};
  std::optional<Failure> failure_;
  std::chrono::steady_clock::time_point failure_time_;
  std::condition_variable rank_ended_;

  std::vector<Operation> matched_;  // for the progress thread to take
  std::deque<Operation> in_hand_;   // belongs to the progress thread while busy_
  bool some_withdrawn_ = false;     // some operations may have to be dropped
  bool busy_ = false, work_ = false, stopping_ = false;
  int64_t rounds_ = 0;  // how often busy_ has ended
  std::condition_variable work_changed_, quiet_;
};

}  // namespace ringlet::threads
