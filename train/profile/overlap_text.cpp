// The figures of a profile for people, and as JSON.
#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>

#include "train/console.h"
#include "train/profile/overlap.h"

namespace ringlet {
namespace {

constexpr size_t kMostRows = 48;  // more are summed over the layers
constexpr double kEvenWork = 1.1;  // largest over mean

std::string ms_text(double ms) { return fmt::format("{:.2f}", ms); }
std::string percent_text(double part, double whole) {
  return whole > 0 ? fmt::format("{:.1f} %", 100 * part / whole) : "-";
}

std::vector<HopOverlap> sums_over_layers(const std::vector<HopOverlap>& hops) {
  std::vector<HopOverlap> sums;
  for (const HopOverlap& hop : hops) {
    const auto same = [&](const HopOverlap& sum) {
      return sum.hop == hop.hop && std::string_view(sum.phase) == hop.phase;
    };
    const auto found = std::ranges::find_if(sums, same);
    if (found == sums.end()) {
      sums.push_back(hop);
      continue;
    }
    for (double HopOverlap::*field : {&HopOverlap::compute_ms, &HopOverlap::transfer_ms, &HopOverlap::hidden_ms,
                                      &HopOverlap::exposed_ms, &HopOverlap::late_ms}) {
      (*found).*field += hop.*field;
    }
  }
  return sums;
}

struct Waste {
  double ms = 0;
  std::string what, advice;
};

Waste exposed_hop(const Overlap& overlap) {
  Waste worst;
  for (const HopOverlap& hop : sums_over_layers(overlap.hops)) {
    const double ms = hop.exposed_ms - hop.late_ms;
    if (ms <= worst.ms) continue;
    worst = {ms, fmt::format("messages of hop {} of the {} pass, which travel longer than the compute beside them", hop.hop,
                             hop.phase),
             "More tokens a rank (a longer run.seq_len, or fewer ranks), fewer kv_heads or a faster link hide them; "
             "`ringlet plan` tells from how many tokens."};
  }
  return worst;
}

Waste late_ranks(const Overlap& overlap, const SharedPlaces& places) {
  double late_ms = 0;
  for (const RankOverlap& rank : overlap.ranks) late_ms += rank.late_ms / double(overlap.ranks.size());
  const std::string what = fmt::format("waiting for ranks that were late (the largest compute is {:.2f} times the mean)",
                                       overlap.imbalance);
  if (places.users > places.places) {
    return {late_ms, what,
            fmt::format("{0} {1}s share {2} {3}{4}: on as many {3}s as {1}s the ranks would not queue for them.", places.users,
                        places.user, places.places, places.place, places.places == 1 ? "" : "s")};
  }
  return {late_ms, what,
          overlap.imbalance > kEvenWork
              ? "run.layout = \"zigzag\" or \"striped\" shares causal work out evenly."
              : fmt::format("The ranks' work is even: look for other programs that take their {0}s, and for slow {0}s.",
                        places.place)};
}

nlohmann::ordered_json number_or_null(const std::optional<double>& value) {
  return value ? nlohmann::ordered_json(*value) : nlohmann::ordered_json(nullptr);
}

}  // namespace

std::string largest_waste(const Overlap& overlap, const SharedPlaces& places) {
  double step_ms = 0, loader_ms = 0, other_ms = 0;
  for (const RankOverlap& rank : overlap.ranks) {
    const double share = 1 / double(overlap.ranks.size());
    step_ms += share * rank.step_ms;
    loader_ms += share * rank.loader_ms;
    other_ms += share * rank.other_ms();
  }
  const std::vector<Waste> all{
      exposed_hop(overlap), late_ranks(overlap, places),
      {loader_ms, "waiting for the loader", "Keep the corpus on a faster disk, or in memory."},
      {overlap.collective_exposed_ms - overlap.collective_late_ms, "waiting for the sums of gradients and the gathering of weights",
       "More windows a step (train.batch_windows) share them out."},
      {other_ms, "time between the operations",
       "Larger operations (memory.head_chunk, memory.mlp_chunk, more tokens a rank) make it matter less."}};
  const Waste& worst = *std::ranges::max_element(all, {}, &Waste::ms);
  return fmt::format("The largest waste is {}: {:.2f} ms, {:.1f} % of a step. {}", worst.what, worst.ms,
                     100 * worst.ms / step_ms, worst.advice);
}

std::string overlap_table(const Overlap& overlap) {
  const bool summed = overlap.hops.size() > kMostRows;
  std::vector<std::vector<std::string>> rows{
      {"pass", "layer", "hop", "compute ms", "transfer ms", "hidden", "exposed ms", "of it late ms"}};
  for (const HopOverlap& hop : summed ? sums_over_layers(overlap.hops) : overlap.hops) {
    rows.push_back({hop.phase, summed ? "all" : std::to_string(hop.layer), std::to_string(hop.hop), ms_text(hop.compute_ms),
                    ms_text(hop.transfer_ms), percent_text(hop.hidden_ms, hop.transfer_ms), ms_text(hop.exposed_ms),
                    ms_text(hop.late_ms)});
  }
  return format_table(rows);
}

std::string rank_table(const Overlap& overlap) {
  std::vector<std::vector<std::string>> rows{{"rank", "step ms", "compute ms", "exposed ms", "of it late ms", "bubble",
                                              "loader ms", "other ms", "transfer ms", "hidden", "sent"}};
  for (size_t i = 0; i < overlap.ranks.size(); ++i) {
    const RankOverlap& rank = overlap.ranks[i];
    rows.push_back({std::to_string(i), ms_text(rank.step_ms), ms_text(rank.compute_ms), ms_text(rank.exposed_ms),
                    ms_text(rank.late_ms), fmt::format("{:.1f} %", rank.bubble_percent()), ms_text(rank.loader_ms),
                    ms_text(rank.other_ms()), ms_text(rank.transfer_ms), percent_text(rank.hidden_ms, rank.transfer_ms),
                    human_bytes(rank.sent_bytes)});
  }
  return format_table(rows) + fmt::format("imbalance {:.3f} (largest compute over mean)\n", overlap.imbalance);
}

std::string slowdown_line(const Overlap& overlap) {
  if (!overlap.slowdown) {
    return "slowdown of overlapped compute: cannot be told (it takes several calls of equal work with a message beside them for "
           "half of their time, and without, while all ranks compute; and a link that is not emulated)";
  }
  return fmt::format("slowdown of overlapped compute: {:.2f} times, {} calls against calls of equal work without a message "
                     "beside them, while all ranks compute",
                     overlap.slowdown->factor, overlap.slowdown->calls);
}

nlohmann::ordered_json to_json(const Overlap& overlap) {
  nlohmann::ordered_json json{{"imbalance", overlap.imbalance},
                              {"collective_ms", overlap.collective_ms},
                              {"collective_exposed_ms", overlap.collective_exposed_ms},
                              {"collective_late_ms", overlap.collective_late_ms}};
  json["slowdown"] = nullptr;
  if (overlap.slowdown) json["slowdown"] = {{"factor", overlap.slowdown->factor}, {"calls", overlap.slowdown->calls}};
  for (const RankOverlap& rank : overlap.ranks) {
    json["ranks"].push_back({{"step_ms", rank.step_ms}, {"compute_ms", rank.compute_ms}, {"exposed_ms", rank.exposed_ms},
                             {"late_ms", rank.late_ms}, {"bubble_percent", rank.bubble_percent()},
                             {"loader_ms", rank.loader_ms}, {"other_ms", rank.other_ms()},
                             {"transfer_ms", rank.transfer_ms}, {"hidden_percent", number_or_null(rank.hidden_percent())},
                             {"sent_bytes", rank.sent_bytes}});
  }
  json["hops"] = nlohmann::ordered_json::array();
  for (const HopOverlap& hop : overlap.hops) {
    json["hops"].push_back({{"pass", hop.phase}, {"layer", hop.layer}, {"hop", hop.hop}, {"compute_ms", hop.compute_ms},
                            {"transfer_ms", hop.transfer_ms}, {"hidden_ms", hop.hidden_ms},
                            {"exposed_ms", hop.exposed_ms}, {"late_ms", hop.late_ms}});
  }
  return json;
}

}  // namespace ringlet
