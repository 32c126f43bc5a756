#include "train/profile/recording.h"

#include <algorithm>
#include <deque>
#include <map>

namespace ringlet {
namespace {

using Direction = TransferObserver::Direction;

/// From ns of the steady clock to us since the start, to the nearest: rising times stay in order, and sums are not biased.
struct Clock {
  int64_t start_ns;
  Span span(int64_t begin_ns, int64_t end_ns) const { return {us(begin_ns), us(end_ns)}; }
  int64_t us(int64_t ns) const { return (ns - start_ns + 500) / 1000; }
};

/// The posts of all ranks by their events.
class PostIndex {
 public:
  struct Where {
    size_t rank, post;
  };
  void add(Event event, Where where) { posts_[{event.timeline, event.value}] = where; }
  const Where* find(Event event) const {
    const auto found = posts_.find({event.timeline, event.value});
    return found == posts_.end() ? nullptr : &found->second;
  }

 private:
  std::map<std::pair<const Timeline*, int64_t>, Where> posts_;
};

RankRecording copy_of(const RankRecorder& record, const Clock& clock) {
  RankRecording rank;
  rank.posts = record.posts;
  rank.messages = record.messages;
  for (const RankRecorder::Step& step : record.steps) {
    rank.steps.push_back({clock.span(step.begin_ns, step.end_ns), step.number});
  }
  for (const RankRecorder::Operation& operation : record.operations) {
    rank.operations.push_back({clock.span(operation.begin_ns, operation.end_ns), operation.place, operation.call,
                               operation.used_bytes});
  }
  for (size_t i = 0, step = 0; i < record.phases.size(); ++i) {
    while (record.phases[i].begin_ns >= record.steps[step].end_ns) ++step;
    int64_t end_ns = record.steps[step].end_ns;
    if (i + 1 < record.phases.size()) end_ns = std::min(end_ns, record.phases[i + 1].begin_ns);
    rank.phases.push_back({clock.span(record.phases[i].begin_ns, end_ns), record.phases[i].name});
  }
  return rank;
}

/// From where a rank begins to look for the next window to its first call for it.
void add_loads(RankRecording& rank) {
  size_t next = 0;
  for (const PhaseSpan& phase : rank.phases) {
    if (std::string_view(phase.name) != "data") continue;
    while (next < rank.operations.size() && rank.operations[next].begin_us < phase.begin_us) ++next;
    if (next == rank.operations.size()) return;
    rank.loads.push_back({{phase.begin_us, rank.operations[next].begin_us}, "wait for the loader"});
  }
}

/// All messages of one side of a post are one span, from the first one's begin to the last one's end.
void add_transfers(Recording& recording, const TransferLogs& logs, const PostIndex& index, const Clock& clock) {
  std::vector<std::map<std::pair<size_t, Direction>, size_t>> known(recording.ranks.size());
  for (const TransferLog& log : logs.all()) {
    for (const TransferLog::Transfer& transfer : log.transfers) {
      const PostIndex::Where* where = index.find(transfer.event);
      if (where == nullptr) continue;  // of what is no part of a step
      RankRecording& rank = recording.ranks[where->rank];
      const RankRecorder::Post& post = rank.posts[where->post];
      const Span span = clock.span(transfer.begin_ns, transfer.end_ns);
      const auto [entry, is_first] =
          known[where->rank].try_emplace({where->post, transfer.direction}, rank.transfers.size());
      if (!is_first) {
        TransferSpan& whole = rank.transfers[entry->second];
        whole.begin_us = std::min(whole.begin_us, span.begin_us);
        whole.end_us = std::max(whole.end_us, span.end_us);
        continue;
      }
      int64_t bytes = post.sent_bytes;
      if (transfer.direction == Direction::in) {
        bytes = 0;
        for (size_t i = 0; i < post.message_count; ++i) {
          const RankRecorder::RingMessage& message = rank.messages[post.first_message + i];
          if (message.direction == Direction::in) bytes += message.bytes;
        }
      }
      rank.transfers.push_back({span, post.place, post.cargo, transfer.direction, bytes, where->post});
    }
  }
}

void add_waits(const RankRecorder& record, RankRecording& rank, const PostIndex& index, const Clock& clock) {
  std::multimap<size_t, const TransferSpan*> of_post;
  for (const TransferSpan& transfer : rank.transfers) of_post.emplace(transfer.post, &transfer);
  for (const RankRecorder::Wait& wait : record.waits) {
    WaitSpan span{clock.span(wait.begin_ns, wait.end_ns), wait.place, 0, {}};
    if (const PostIndex::Where* where = index.find(wait.event)) {
      span.post = where->post;
      int64_t begin = span.end_us, end = span.begin_us;  // of what travelled meanwhile, both sides
      for (auto [each, last] = of_post.equal_range(where->post); each != last; ++each) {
        begin = std::min(begin, std::max(span.begin_us, each->second->begin_us));
        end = std::max(end, std::min(span.end_us, each->second->end_us));
      }
      span.transit_us = std::max<int64_t>(0, end - begin);
    }
    rank.waits.push_back(span);
  }
}

void add_arrows(Recording& recording, int ring_size) {
  // Of each route, what was sent and has not yet met its receive.
  std::map<std::pair<int, int>, std::deque<size_t>> sent, received;
  for (size_t rank = 0; rank < recording.ranks.size(); ++rank) {
    const RankRecording& from = recording.ranks[rank];
    std::map<std::pair<size_t, Direction>, size_t> span_of;
    for (size_t i = 0; i < from.transfers.size(); ++i) span_of[{from.transfers[i].post, from.transfers[i].direction}] = i;
    for (size_t post = 0; post < from.posts.size(); ++post) {
      for (size_t i = 0; i < from.posts[post].message_count; ++i) {
        const RankRecorder::RingMessage& message = from.messages[from.posts[post].first_message + i];
        const auto span = span_of.find({post, message.direction});
        if (span == span_of.end()) continue;
        const int self = int(rank), peer = from.ring * ring_size + message.peer;
        if (message.direction == Direction::out) sent[{self, peer}].push_back(span->second);
        else received[{peer, self}].push_back(span->second);
      }
    }
  }
  for (const auto& [route, all] : sent) {
    const std::deque<size_t>& arrived = received[route];
    for (size_t i = 0; i < std::min(all.size(), arrived.size()); ++i) {
      const Arrow arrow{route.first, route.second, all[i], arrived[i]};
      const bool again = i > 0 && all[i] == all[i - 1] && arrived[i] == arrived[i - 1];  // another piece of the same hop
      if (!again) recording.arrows.push_back(arrow);
    }
  }
}

}  // namespace

Recording make_recording(std::vector<std::unique_ptr<RankRecorder>>& ranks, const TransferLogs& logs, int ring_size) {
  Clock clock{ranks.front()->steps.front().begin_ns};
  for (const auto& rank : ranks) clock.start_ns = std::min(clock.start_ns, rank->steps.front().begin_ns);
  Recording recording;
  PostIndex index;
  for (size_t i = 0; i < ranks.size(); ++i) {
    RankRecording& rank = recording.ranks.emplace_back(copy_of(*ranks[i], clock));
    rank.rank = int(i);
    rank.ring = int(i) / ring_size;
    rank.ring_position = int(i) % ring_size;
    for (size_t post = 0; post < rank.posts.size(); ++post) index.add(rank.posts[post].event, {i, post});
    add_loads(rank);
  }
  add_transfers(recording, logs, index, clock);
  for (size_t i = 0; i < ranks.size(); ++i) {
    RankRecording& rank = recording.ranks[i];
    std::ranges::stable_sort(rank.transfers, {}, &TransferSpan::begin_us);
    add_waits(*ranks[i], rank, index, clock);
  }
  add_arrows(recording, ring_size);
  return recording;
}

}  // namespace ringlet
