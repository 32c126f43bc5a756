#include "train/profile/overlap.h"

#include <algorithm>
#include <map>
#include <string_view>
#include <tuple>

#include "train/quantile.h"

namespace ringlet {
namespace {

constexpr size_t kLeastCalls = 20;       // of each kind, for a median that says something
constexpr double kBesideMessages = 0.5;  // share of a call from which it counts as one with a message beside it
constexpr double kBesideCompute = 0.8;   // share of a call that every other rank must have computed

/// A union of spans, and how much of a stretch it covers.
class Cover {
 public:
  explicit Cover(std::vector<Span> spans) {
    std::ranges::sort(spans, {}, &Span::begin_us);
    for (const Span& span : spans) {
      if (!merged_.empty() && span.begin_us <= merged_.back().end_us) {
        merged_.back().end_us = std::max(merged_.back().end_us, span.end_us);
      } else {
        merged_.push_back(span);
      }
    }
    before_.push_back(0);
    for (const Span& span : merged_) before_.push_back(before_.back() + span.length_us());
  }
  int64_t length_us() const { return before_.back(); }
  int64_t covered_us(const Span& span) const { return until(span.end_us) - until(span.begin_us); }
  int64_t covered_us(const Cover& other) const {
    int64_t sum = 0;
    for (const Span& span : other.merged_) sum += covered_us(span);
    return sum;
  }

 private:
  /// Length of the union before a time.
  int64_t until(int64_t us) const {
    const auto next = std::ranges::upper_bound(merged_, us, {}, &Span::begin_us);
    if (next == merged_.begin()) return 0;
    const auto index = size_t(next - merged_.begin()) - 1;
    return before_[index] + std::min(us, merged_[index].end_us) - merged_[index].begin_us;
  }
  std::vector<Span> merged_;
  std::vector<int64_t> before_;
};

bool is_compute(const OperationSpan& operation) { return !is_host_copy(operation.call.op); }

std::vector<Span> compute_spans(const RankRecording& rank) {
  std::vector<Span> spans;
  for (const OperationSpan& operation : rank.operations) {
    if (is_compute(operation)) spans.push_back(operation);
  }
  return spans;
}

using HopKey = std::tuple<std::string_view, int, int>;  // phase, layer, hop
HopKey key_of(const Trace::Place& place) { return {place.phase, place.layer, place.hop}; }
bool is_hop(const Trace::Place& place) { return place.layer >= 0 && place.hop >= 0; }

/// In the order of a step: the backward pass comes last and goes through the layers downwards.
bool comes_before(const HopOverlap& a, const HopOverlap& b) {
  const auto key = [](const HopOverlap& hop) {
    const bool backward = std::string_view(hop.phase) == "backward";
    return std::tuple(backward, backward ? -hop.layer : hop.layer, hop.hop);
  };
  return key(a) < key(b);
}

/// Sums over the steps of one rank, by hop.
class RankSums {
 public:
  RankSums(const RankRecording& rank, double scale, std::map<HopKey, HopOverlap>& hops)
      : rank_(rank), scale_(scale), hops_(hops), compute_(compute_spans(rank)) {}

  RankOverlap run() {
    RankOverlap sums;
    for (const StepSpan& step : rank_.steps) sums.step_ms += ms(step.length_us());
    for (const PhaseSpan& load : rank_.loads) sums.loader_ms += ms(load.length_us());
    sums.compute_ms = ms(compute_.length_us());
    add_operations();
    add_transfers(sums);
    for (const WaitSpan& wait : rank_.waits) {
      const double exposed = ms(wait.length_us()), late = ms(wait.length_us() - wait.transit_us);
      sums.exposed_ms += exposed;
      sums.late_ms += late;
      if (!wait.post) continue;
      const RankRecorder::Post& post = rank_.posts[*wait.post];
      if (!on_ring(post.cargo)) {
        collective_exposed_ms += exposed;
        collective_late_ms += late;
      } else if (is_hop(post.place)) {
        HopOverlap& hop = at(post.place);
        hop.exposed_ms += exposed;
        hop.late_ms += late;
      }
    }
    return sums;
  }

  double collective_ms = 0, collective_exposed_ms = 0, collective_late_ms = 0;

 private:
  double ms(int64_t us) const { return 1e-3 * scale_ * double(us); }
  HopOverlap& at(const Trace::Place& place) {
    HopOverlap& hop = hops_[key_of(place)];
    hop.phase = place.phase;
    hop.layer = place.layer;
    hop.hop = place.hop;
    return hop;
  }

  void add_operations() {
    for (const OperationSpan& operation : rank_.operations) {
      if (is_compute(operation) && is_hop(operation.place)) at(operation.place).compute_ms += ms(operation.length_us());
    }
  }

  void add_transfers(RankOverlap& sums) {
    std::map<HopKey, std::vector<Span>> by_hop;
    std::vector<Span> all, collectives;
    for (const TransferSpan& transfer : rank_.transfers) {
      all.push_back(transfer);
      if (!on_ring(transfer.cargo)) collectives.push_back(transfer);
      if (on_ring(transfer.cargo) && is_hop(transfer.place)) {
        at(transfer.place);
        by_hop[key_of(transfer.place)].push_back(transfer);
      }
      if (transfer.direction != TransferObserver::Direction::in) {
        sums.sent_bytes += double(transfer.bytes) / double(rank_.steps.size());
      }
    }
    for (auto& [key, spans] : by_hop) {
      const Cover cover(std::move(spans));
      HopOverlap& hop = hops_.at(key);
      hop.transfer_ms += ms(cover.length_us());
      hop.hidden_ms += ms(compute_.covered_us(cover));
    }
    const Cover cover(std::move(all));
    sums.transfer_ms = ms(cover.length_us());
    sums.hidden_ms = ms(compute_.covered_us(cover));
    collective_ms = ms(Cover(std::move(collectives)).length_us());
  }

  const RankRecording& rank_;
  const double scale_;
  std::map<HopKey, HopOverlap>& hops_;
  const Cover compute_;
};

std::optional<Slowdown> slowdown_of(const Recording& recording, const std::optional<Mask>& mask) {
  struct Calls {
    std::vector<double> with, without;
  };
  std::map<std::tuple<Op, std::array<int64_t, 3>, int64_t>, Calls> equal;
  std::vector<Cover> computes;
  for (const RankRecording& rank : recording.ranks) computes.emplace_back(compute_spans(rank));
  // Ranks may share memory and cores: a call is faster while others stand still, which is when messages travel.
  const auto all_compute = [&](const Span& call) {
    return std::ranges::all_of(computes, [&](const Cover& compute) {
      return double(compute.covered_us(call)) >= kBesideCompute * double(call.length_us());
    });
  };
  for (const RankRecording& rank : recording.ranks) {
    std::vector<Span> spans(rank.transfers.begin(), rank.transfers.end());
    const Cover transfers(std::move(spans));
    for (const OperationSpan& operation : rank.operations) {
      const OpCall& call = operation.call;
      if (!is_compute(operation) || operation.length_us() == 0 || (is_attention(call.op) && !mask)) continue;
      if (!all_compute(operation)) continue;
      const int64_t pairs = is_attention(call.op) ? visible_pairs(*mask, call.queries, call.keys) : 0;
      Calls& calls = equal[{call.op, call.size, pairs}];
      const double beside = double(transfers.covered_us(operation)) / double(operation.length_us());
      if (beside >= kBesideMessages) calls.with.push_back(double(operation.length_us()));
      if (beside == 0) calls.without.push_back(double(operation.length_us()));
    }
  }
  double with = 0, without = 0;
  Slowdown result;
  for (auto& [key, calls] : equal) {
    if (calls.with.size() < kLeastCalls || calls.without.size() < kLeastCalls) continue;
    with += double(calls.with.size()) * median(calls.with);
    without += double(calls.with.size()) * median(calls.without);
    result.calls += int64_t(calls.with.size());
  }
  if (result.calls == 0) return {};
  result.factor = with / without;
  return result;
}

}  // namespace

std::optional<double> RankOverlap::hidden_percent() const {
  if (transfer_ms == 0) return {};
  return 100 * hidden_ms / transfer_ms;
}

Overlap overlap_of(const Recording& recording, const std::optional<Mask>& mask) {
  Overlap overlap;
  std::map<HopKey, HopOverlap> hops;
  const double ranks = double(recording.ranks.size());
  double total_ms = 0, largest_ms = 0;
  for (const RankRecording& rank : recording.ranks) {
    RankSums sums(rank, 1 / double(rank.steps.size()), hops);
    overlap.ranks.push_back(sums.run());
    overlap.collective_ms += sums.collective_ms / ranks;
    overlap.collective_exposed_ms += sums.collective_exposed_ms / ranks;
    overlap.collective_late_ms += sums.collective_late_ms / ranks;
    total_ms += overlap.ranks.back().compute_ms;
    largest_ms = std::max(largest_ms, overlap.ranks.back().compute_ms);
  }
  if (total_ms > 0) overlap.imbalance = largest_ms * ranks / total_ms;
  for (auto& [key, hop] : hops) {
    for (double HopOverlap::*field : {&HopOverlap::compute_ms, &HopOverlap::transfer_ms, &HopOverlap::hidden_ms,
                                      &HopOverlap::exposed_ms, &HopOverlap::late_ms}) {
      hop.*field /= ranks;
    }
    overlap.hops.push_back(hop);
  }
  std::ranges::sort(overlap.hops, comes_before);
  overlap.slowdown = slowdown_of(recording, mask);
  return overlap;
}

}  // namespace ringlet
