#pragma once

#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "model/sequence_layout.h"
#include "train/profile/recording.h"

namespace ringlet {

/// One hop of one layer in one pass. Milliseconds of a step, mean over the ranks.
struct HopOverlap {
  const char* phase = "";  // "forward", "backward"
  int layer = 0, hop = 0;
  double compute_ms = 0;   // of its operations
  double transfer_ms = 0;  // something that was sent off in it travelled, in or out
  double hidden_ms = 0;    // of these, while the rank computed
  double exposed_ms = 0;   // the rank stood still for what was sent off in it
  double late_ms = 0;      // of these, before it began to travel: another rank was late
};

/// One rank. Milliseconds of a step.
struct RankOverlap {
  double step_ms = 0, compute_ms = 0, exposed_ms = 0, late_ms = 0, loader_ms = 0;
  double transfer_ms = 0, hidden_ms = 0;  // ring and collectives; their ratio is what trace analysers call overlap
  double sent_bytes = 0;
  double bubble_percent() const { return step_ms > 0 ? 100 * exposed_ms / step_ms : 0; }
  double other_ms() const { return step_ms - compute_ms - exposed_ms - loader_ms; }
  std::optional<double> hidden_percent() const;  // absent: nothing travelled
};

/// Equal work with and without messages beside it, while all other ranks compute: medians over calls of one operation, size
/// and count of visible pairs, weighted by their time.
struct Slowdown {
  double factor = 0;  // time with over time without
  int64_t calls = 0;  // that ran with a message beside them
};

struct Overlap {
  std::vector<HopOverlap> hops;  // in the order of a step
  std::vector<RankOverlap> ranks;
  double collective_ms = 0, collective_exposed_ms = 0, collective_late_ms = 0;  // mean over the ranks; late: of the exposed
  std::optional<Slowdown> slowdown;                     // absent: there was no equal work of both kinds
  double imbalance = 1;  // largest over mean compute_ms
};

/// mask: of every window, where all have the same; absent: attention does not count as equal work.
Overlap overlap_of(const Recording& recording, const std::optional<Mask>& mask);

/// What computes, and on how many places: 4 "thread"s of all ranks on 2 "core"s, ranks on GPUs.
struct SharedPlaces {
  int users = 0, places = 0;
  const char *user = "thread", *place = "core";
};

/// The largest waste and what can be done, one sentence each.
std::string largest_waste(const Overlap& overlap, const SharedPlaces& places);

std::string overlap_table(const Overlap& overlap);  // of hops; of many layers their sums
std::string rank_table(const Overlap& overlap);
std::string slowdown_line(const Overlap& overlap);
nlohmann::ordered_json to_json(const Overlap& overlap);

}  // namespace ringlet
