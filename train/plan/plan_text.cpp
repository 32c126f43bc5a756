#include "train/plan/plan_text.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "model/block_inputs.h"
#include "train/console.h"

namespace ringlet {
namespace {

constexpr int kBarWidth = 40;
constexpr double kNoisy = 0.2;  // Rates::spread from which times are off by more than a user would think

std::string bar(double share) {
  std::string text;
  const int full = int(std::lround(share * kBarWidth));
  for (int i = 0; i < full; ++i) text += "#";
  return text;
}

std::string trimmed(std::string text) {
  while (text.ends_with('\n')) text.pop_back();
  return text;
}

std::string flops_text(double flops) { return human_count(flops) + "FLOP"; }

std::string change(double value, double base) {
  if (base <= 0 || std::abs(value / base - 1) < 5e-4) return "=";
  return fmt::format("{:+.1f} %", 100 * (value / base - 1));
}

struct HopRow {
  std::string phase;
  int hop;
  HopTime time;
};

std::vector<HopRow> rows_of(const RankTime& time) {
  std::vector<HopRow> rows;
  for (const auto& [place, hop] : time.hops) {
    if (hop.compute_seconds + hop.exposed_seconds == 0 && hop.sent_bytes == 0) continue;
    rows.push_back({place.first, place.second, hop});
  }
  const auto order = [](const HopRow& row) {
    const int phase = row.phase == "forward" ? 0 : row.phase == "backward" ? 1 : 2;
    return std::pair(phase, row.hop);
  };
  std::ranges::stable_sort(rows, {}, order);
  return rows;
}

}  // namespace

std::string memory_text(const DryRun& run, const Plan& plan, const Rates* rates) {
  const DryStep& fullest = plan.fullest();
  std::vector<Arena::Region> regions = fullest.regions;
  std::ranges::sort(regions, std::greater{}, &Arena::Region::bytes);
  std::vector<std::vector<std::string>> table{{"memory of the fullest rank", "bytes", "", "share", ""}};
  for (const Arena::Region& region : regions) {
    if (region.bytes == 0) continue;
    const double share = double(region.bytes) / double(fullest.peak_bytes);
    table.push_back({region.name, std::to_string(region.bytes), human_bytes(double(region.bytes)),
                     fmt::format("{:.1f} %", 100 * share), fmt::format("{:<{}}", bar(share), kBarWidth)});
  }
  table.push_back({"in all", std::to_string(fullest.peak_bytes), human_bytes(double(fullest.peak_bytes)), "", ""});
  std::string text = format_table(table);
  text += fmt::format("rank {} ({} rows), fullest at: {}", fullest.rank, fullest.rows, fullest.moment.text());
  if (rates != nullptr && rates->foreign_bytes > 0) {
    text += run.config.run.device == DeviceKind::cuda
                ? fmt::format("\nforeign memory (context, kernels, cuBLAS, others; measured by --calibrate): {} on the GPU",
                              human_bytes(rates->foreign_bytes))
                : fmt::format("\nforeign memory (program, libraries, stacks; measured by --calibrate): {} in the process",
                              human_bytes(rates->foreign_bytes));
  }
  if (fullest.offloaded_bytes > 0) {
    const std::string once = human_bytes(0.5 * double(fullest.offloaded_bytes));
    text += run.config.run.device == DeviceKind::cuda
                ? fmt::format("\nblock inputs wait in {} of pinned host memory: {} copied there and as much back in "
                              "a step",
                              human_bytes(double(BlockInputs::offloaded_bytes(run.gpt, fullest.rows))), once)
                : fmt::format("\nblock inputs wait in a file: {} written and as much read in a step", once);
    if (rates != nullptr && rates->offload_bytes_per_second == 0) {
      text += "; the time of that is not predicted (calibrate with memory.offload)";
    }
  }
  if (!plan.every_rank) text += fmt::format("\n{} ranks, among them one of each kind, were run dry", plan.ranks.size());
  return text;
}

std::string knobs_text(const std::vector<Knob>& knobs) {
  const bool longest = std::ranges::any_of(knobs, [](const Knob& knob) { return knob.longest_context > 0; });
  std::vector<std::vector<std::string>> table{{"what each knob buys", "peak of a rank", "", "executed FLOPs", "sent"}};
  if (longest) table[0].push_back("longest T");
  const Knob& base = knobs.front();
  for (const Knob& knob : knobs) {
    table.push_back({knob.name, human_bytes(double(knob.peak_bytes)),
                     change(double(knob.peak_bytes), double(base.peak_bytes)),
                     change(knob.executed_flops, base.executed_flops),
                     change(double(knob.sent_bytes), double(base.sent_bytes))});
    if (longest) table.back().push_back(std::to_string(knob.longest_context));
  }
  return trimmed(format_table(table));
}

std::string work_text(const DryRun& run, const Plan& plan) {
  const auto most = std::ranges::max_element(plan.ranks, {}, [](const DryStep& rank) { return rank.traffic.bytes(); });
  const Traffic& traffic = most->traffic;
  const int64_t rows = plan.fullest().rows, forward = rows * run.gpt.kv_token_bytes();
  std::string text = fmt::format(
      "work of a step: model {} (6 N T + 12 L d a visible pair), {} by the 12 L d T convention, executed {}\n",
      flops_text(plan.flops.model), flops_text(plan.flops.palm), flops_text(plan.flops.executed));
  text += fmt::format(
      "rank {} sends {} bytes a step: ring {}, gradients {}, weights {}, sums {}; a hop carries up to {} of keys and "
      "values "
      "forward, {} backward",
      most->rank, traffic.bytes(), traffic.exchange_bytes, traffic.reduce_scatter_bytes, traffic.all_gather_bytes,
      traffic.all_reduce_bytes, human_bytes(double(forward)),
      human_bytes(double(forward + rows * run.gpt.kv_gradient_token_bytes())));
  if (run.config.data.mask == MaskRule::document) {
    text += "\nthe worst case: windows of one document each; boundaries save work and traffic";
  }
  return text;
}

std::string overlap_text(const DryRun& run, const Plan& plan, const Rates& rates) {
  if (run.config.run.ring_size() == 1) return "overlap: a ring of one sends no hops";
  const int64_t rows = plan.fullest().rows;
  const HideThreshold hide = hide_threshold(run.gpt, rates, rows);
  const int64_t kv_bytes = 2 * element_bytes(run.gpt.dtype);
  return fmt::format(
      "overlap on a link of {} ({:.4g} GB/s, {:.3g} us): a hop hides from {:.0f} tokens a rank forward, {:.0f} "
      "backward;\n"
      "  here {} tokens a rank: {:.2g} and {:.2g} times that\n"
      "  formula: a c^2 >= latency + b c; a = 2 (5) * heads * head_dim / attention rate, b = {} ({}) * kv_heads * "
      "head_dim / "
      "bandwidth",
      rates.link.name, rates.link.bytes_per_second / 1e9, 1e6 * rates.link.latency_seconds,
      std::ceil(hide.forward_tokens), std::ceil(hide.backward_tokens), rows, double(rows) / hide.forward_tokens,
      double(rows) / hide.backward_tokens, kv_bytes, kv_bytes + 8);
}

std::string timeline_text(const DryRun& run, const Plan& plan, const Rates& rates) {
  const RankTime& last = *std::ranges::max_element(plan.times, {}, &RankTime::end_seconds);
  const int rank = plan.timed_ranks[size_t(&last - plan.times.data())];
  std::vector<std::vector<std::string>> table{
      {fmt::format("a step of rank {}, all layers", rank), "compute ms", "exposed ms", "of it late ms", "bubble", "sent",
       ""}};
  const std::vector<HopRow> rows = rows_of(last);
  constexpr size_t kMostRows = 24;
  for (size_t i = 0; i < rows.size(); ++i) {
    if (rows.size() > kMostRows && i >= kMostRows / 2 && i + kMostRows / 2 < rows.size()) {
      if (i == kMostRows / 2) table.push_back({"...", "", "", "", "", "", ""});
      continue;
    }
    const HopRow& row = rows[i];
    const double all = row.time.compute_seconds + row.time.exposed_seconds;
    const double share = last.end_seconds > 0 ? all / last.end_seconds : 0;
    std::string picture = bar(share);
    const auto exposed = size_t(std::lround(double(picture.size()) * row.time.exposed_seconds / std::max(all, 1e-30)));
    picture.replace(picture.size() - exposed, exposed, exposed, '.');
    table.push_back({row.hop < 0 ? row.phase + ", no hop" : fmt::format("{}, hop {}", row.phase, row.hop),
                     fmt::format("{:.3f}", 1e3 * row.time.compute_seconds),
                     fmt::format("{:.3f}", 1e3 * row.time.exposed_seconds),
                     plan.every_rank ? fmt::format("{:.3f}", 1e3 * row.time.late_seconds) : "-",
                     all > 0 ? fmt::format("{:.1f} %", 100 * row.time.exposed_seconds / all) : "",
                     human_bytes(double(row.time.sent_bytes)), fmt::format("{:<{}}", picture, kBarWidth)});
  }
  std::string text = format_table(table);
  const double tokens = double(plan.tokens_per_step) / plan.step_seconds;
  text += fmt::format("predicted step: {:.4g} ms, {} tokens/s, bubble {:.1f} %", 1e3 * plan.step_seconds,
                      human_count(tokens), plan.bubble_percent());
  if (last.copy_seconds > 0) {
    text += fmt::format(", {:.4g} ms of the step for offloaded block inputs ({:.3g} GB/s)", 1e3 * last.copy_seconds,
                        rates.offload_bytes_per_second / 1e9);
  }
  if (rates.peak_flops > 0) {
    const double peak = rates.peak_flops * plan.step_seconds * double(run.config.run.ranks);
    text += fmt::format(", MFU {:.1f} % (causal exact; {:.1f} % by 12 L d T)", 100 * plan.flops.model / peak,
                        100 * plan.flops.palm / peak);
  }
  text += fmt::format("\nrates: {}; {}", rates.device, rates.source_text());
  if (rates.spread > 0) text += fmt::format("; equal calls differed by {:.0f} % then", 100 * rates.spread);
  if (rates.spread > kNoisy) text += ", which is much: calibrate once more when nothing else runs";
  if (!plan.every_rank) text += "\nthe busiest rank's time; its neighbours are taken to be as busy";
  return text;
}

nlohmann::ordered_json to_json(const DryRun& run, const Plan& plan, const std::vector<Knob>& knobs,
                               const Rates* rates) {
  nlohmann::ordered_json json{{"seq_len", run.config.run.seq_len},
                              {"ranks", run.config.run.ranks},
                              {"ring", run.config.run.ring_size()},
                              {"every_rank", plan.every_rank}};
  for (const DryStep& rank : plan.ranks) {
    nlohmann::ordered_json regions;
    for (const Arena::Region& region : rank.regions) regions[region.name] = region.bytes;
    const Traffic& traffic = rank.traffic;
    json["memory"].push_back({{"rank", rank.rank}, {"rows", rank.rows}, {"peak_bytes", rank.peak_bytes},
                              {"peak_moment", rank.moment.text()}, {"regions", regions}});
    json["traffic"].push_back({{"rank", rank.rank}, {"sent_bytes", traffic.bytes()},
                               {"ring_bytes", traffic.exchange_bytes}, {"exchanges", traffic.exchanges},
                               {"gradient_bytes", traffic.reduce_scatter_bytes},
                               {"weight_bytes", traffic.all_gather_bytes}, {"sum_bytes", traffic.all_reduce_bytes}});
  }
  json["flops"] = {{"model", plan.flops.model}, {"palm", plan.flops.palm}, {"executed", plan.flops.executed}};
  for (const Knob& knob : knobs) {
    json["knobs"].push_back({{"name", knob.name}, {"peak_bytes", knob.peak_bytes},
                             {"executed_flops", knob.executed_flops}, {"sent_bytes", knob.sent_bytes}});
    if (knob.longest_context > 0) json["knobs"].back()["longest_context"] = knob.longest_context;
  }
  if (rates == nullptr) return json;
  json["rates"] = {{"device", rates->device},
                   {"source", rates->source},
                   {"measured_at", rates->measured_at},
                   {"link", rates->link.name},
                   {"foreign_bytes", rates->foreign_bytes},
                   {"spread", rates->spread}};
  if (run.config.run.ring_size() > 1) {
    const HideThreshold hide = hide_threshold(run.gpt, *rates, plan.fullest().rows);
    json["hide_threshold"] = {{"forward_tokens", hide.forward_tokens}, {"backward_tokens", hide.backward_tokens}};
  }
  json["step_seconds"] = plan.step_seconds;
  json["tokens_per_second"] = double(plan.tokens_per_step) / plan.step_seconds;
  json["bubble_percent"] = plan.bubble_percent();
  for (size_t i = 0; i < plan.times.size(); ++i) {
    json["times"].push_back({{"rank", plan.timed_ranks[i]}, {"compute_seconds", plan.times[i].compute_seconds},
                             {"exposed_seconds", plan.times[i].exposed_seconds},
                             {"copy_seconds", plan.times[i].copy_seconds},
                             {"end_seconds", plan.times[i].end_seconds}});
    if (plan.every_rank) json["times"].back()["late_seconds"] = plan.times[i].late_seconds;
  }
  return json;
}

}  // namespace ringlet
