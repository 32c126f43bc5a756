#include "train/plan/replay.h"

#include <algorithm>
#include <array>
#include <deque>

namespace ringlet {
namespace {

/// A message that one side has asked for.
struct Half {
  size_t rank;
  int64_t operation;
  double asked_at;
  int64_t bytes;
};

/// Where a started operation stands.
struct Operation {
  size_t open = 0;  // messages that are not yet through
  double done_at = 0;
  double prompt_at = 0;  // the same, had all peers asked when this rank did
};

struct Rank {
  size_t next = 0;  // entry of its tape
  double clock = 0, out_free = 0, in_free = 0, copies_free = 0;
  double prompt_out_free = 0, prompt_in_free = 0, prompt_collectives_free = 0;
  std::array<std::map<int64_t, Operation>, Tape::kChannelCount> operations;  // by number; those not waited for
  // When all earlier operations of the channel were through.
  std::array<double, Tape::kChannelCount> done_before{}, prompt_before{};
};

class Player {
 public:
  explicit Player(const Replay& replay)
      : replay_(replay), ranks_(replay.tapes.size()), times_(replay.tapes.size()) {}

  std::vector<RankTime> run() {
    bool all_done = false;
    while (!all_done) {
      all_done = true;
      bool moved = false;
      for (size_t rank = 0; rank < ranks_.size(); ++rank) {
        const size_t before = ranks_[rank].next;
        advance(rank);
        moved = moved || ranks_[rank].next != before;
        all_done = all_done && ranks_[rank].next == entries(rank).size();
      }
      CHECK(all_done || moved, "the ranks of a plan wait for each other for ever");
    }
    for (size_t rank = 0; rank < ranks_.size(); ++rank) times_[rank].end_seconds = ranks_[rank].clock;
    return std::move(times_);
  }

 private:
  bool alone() const { return int(replay_.tapes.size()) < replay_.world_size; }
  const std::vector<TapeEntry>& entries(size_t rank) const { return replay_.tapes[rank]->entries(); }

  void advance(size_t index) {
    Rank& rank = ranks_[index];
    for (; rank.next < entries(index).size(); ++rank.next) {
      const TapeEntry& entry = entries(index)[rank.next];
      HopTime& hop = times_[index].hops[{entry.phase, entry.hop}];
      switch (entry.kind) {
        case TapeEntry::Kind::compute: {
          const double seconds = entry.seconds * replay_.slowdown;
          rank.clock += seconds;
          hop.compute_seconds += seconds;
          times_[index].compute_seconds += seconds;
          break;
        }
        case TapeEntry::Kind::exchange:
          start_exchange(index, entry, hop);
          break;
        case TapeEntry::Kind::collective:
          start_collective(index, entry);
          break;
        case TapeEntry::Kind::copy:
          start_copy(index, entry);
          break;
        case TapeEntry::Kind::wait: {
          double done_at = 0;
          if (!is_through(rank, entry, done_at)) return;
          const double asked_at = rank.clock, exposed = std::max(0.0, done_at - asked_at);
          rank.clock += exposed;
          if (entry.channel == Tape::kOffload) {
            times_[index].copy_seconds += exposed;
            break;
          }
          const double late = exposed - std::clamp(rank.prompt_before[entry.channel] - asked_at, 0.0, exposed);
          hop.exposed_seconds += exposed;
          hop.late_seconds += late;
          times_[index].exposed_seconds += exposed;
          times_[index].late_seconds += late;
          break;
        }
      }
    }
  }

  /// Are all operations of a channel up to this one through, and since when?
  static bool is_through(Rank& rank, const TapeEntry& entry, double& done_at) {
    auto& operations = rank.operations[entry.channel];
    while (!operations.empty() && operations.begin()->first <= entry.operation) {
      const Operation& first = operations.begin()->second;
      if (first.open > 0) return false;
      rank.done_before[entry.channel] = std::max(rank.done_before[entry.channel], first.done_at);
      rank.prompt_before[entry.channel] = std::max(rank.prompt_before[entry.channel], first.prompt_at);
      operations.erase(operations.begin());
    }
    done_at = rank.done_before[entry.channel];
    return true;
  }

  void start_exchange(size_t index, const TapeEntry& entry, HopTime& hop) {
    Rank& rank = ranks_[index];
    Operation& operation = rank.operations[entry.channel][entry.operation];
    operation.done_at = rank.clock;
    const size_t ring_begin = index - index % size_t(replay_.ring_size);
    for (const TapeMessage& message : replay_.tapes[index]->messages(entry)) {
      const bool out = message.direction == TapeMessage::Direction::out;
      if (out) hop.sent_bytes += message.bytes;
      double& prompt_free = out ? rank.prompt_out_free : rank.prompt_in_free;
      prompt_free = std::max(prompt_free, rank.clock) + replay_.link.message_seconds(message.bytes);
      operation.prompt_at = std::max(operation.prompt_at, prompt_free);
      if (alone()) {
        operation.done_at = std::max(operation.done_at, prompt_free);
        continue;
      }
      const Half half{index, entry.operation, rank.clock, message.bytes};
      const size_t peer = ring_begin + size_t(message.peer);
      operation.open += 1;
      Pair& pair = pairs_[out ? std::pair(index, peer) : std::pair(peer, index)];
      (out ? pair.sends : pair.receives).push_back(half);
      if (!pair.sends.empty() && !pair.receives.empty()) {
        deliver(pair.sends.front(), pair.receives.front(), entry.channel);
        pair.sends.pop_front();
        pair.receives.pop_front();
      }
    }
  }

  void deliver(const Half& send, const Half& receive, uint8_t channel) {
    CHECK(send.bytes == receive.bytes, send.bytes, " bytes sent, ", receive.bytes, " expected");
    Rank &from = ranks_[send.rank], &to = ranks_[receive.rank];
    const double start = std::max({send.asked_at, receive.asked_at, from.out_free, to.in_free});
    const double end = start + replay_.link.message_seconds(send.bytes);
    from.out_free = to.in_free = end;
    for (const Half& half : {send, receive}) {
      Operation& operation = ranks_[half.rank].operations[channel].at(half.operation);
      operation.open -= 1;
      operation.done_at = std::max(operation.done_at, end);
    }
  }

  void start_copy(size_t index, const TapeEntry& entry) {
    Rank& rank = ranks_[index];
    if (replay_.copies_take_cores) {
      const double seconds = entry.seconds * replay_.slowdown;
      rank.clock += seconds;
      times_[index].copy_seconds += seconds;
      return;
    }
    rank.copies_free = std::max(rank.copies_free, rank.clock) + entry.seconds;
    rank.operations[entry.channel][entry.operation] = {0, rank.copies_free};
  }

  void start_collective(size_t index, const TapeEntry& entry) {
    Rank& rank = ranks_[index];
    const double seconds = replay_.link.collective_seconds(entry.bytes, replay_.world_size);
    double& prompt_free = rank.prompt_collectives_free;
    prompt_free = std::max(prompt_free, rank.clock) + seconds;
    rank.operations[entry.channel][entry.operation] = {1, rank.clock, prompt_free};
    Meeting& meeting = meetings_[entry.operation];
    meeting.here += 1;
    meeting.begins_at = std::max({meeting.begins_at, rank.clock, collectives_free_});
    if (meeting.here < ranks_.size()) return;
    const double end = meeting.begins_at + seconds;
    collectives_free_ = end;
    for (Rank& each : ranks_) {
      Operation& operation = each.operations[entry.channel].at(entry.operation);
      operation.open = 0;
      operation.done_at = end;
    }
  }

  struct Pair {
    std::deque<Half> sends, receives;
  };
  struct Meeting {
    size_t here = 0;
    double begins_at = 0;
  };

  const Replay& replay_;
  std::vector<Rank> ranks_;
  std::vector<RankTime> times_;
  std::map<std::pair<size_t, size_t>, Pair> pairs_;  // from, to
  std::map<int64_t, Meeting> meetings_;
  double collectives_free_ = 0;
};

}  // namespace

std::vector<RankTime> play(const Replay& replay) { return Player(replay).run(); }

void extend(RankTime& one, const RankTime& two, int64_t windows) {
  const auto extended = [&](auto& first, auto second) {
    using Number = std::remove_reference_t<decltype(first)>;
    first += Number(windows - 1) * (second - first);
  };
  extended(one.end_seconds, two.end_seconds);
  extended(one.compute_seconds, two.compute_seconds);
  extended(one.exposed_seconds, two.exposed_seconds);
  extended(one.late_seconds, two.late_seconds);
  extended(one.copy_seconds, two.copy_seconds);
  for (auto& [place, hop] : one.hops) {
    const HopTime& other = two.hops.at(place);
    extended(hop.compute_seconds, other.compute_seconds);
    extended(hop.exposed_seconds, other.exposed_seconds);
    extended(hop.late_seconds, other.late_seconds);
    extended(hop.sent_bytes, other.sent_bytes);
  }
}

}  // namespace ringlet
