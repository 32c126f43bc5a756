#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "tests/bench/ring_error.h"
#include "train/report/plot.h"

namespace ringlet::bench {
namespace {

constexpr const char* kSchemes =
    "Relative RMS error against dense attention in double precision, causal, standard normal "
    "inputs.\n"
    "Schemes with bf16 operands are compared with the dense result for the same rounded operands. "
    "They store O in\n"
    "bf16 before the backward pass reads it, and dQ, dK and dV at the end; LSE is f32 in all of "
    "them.\n"
    "\n"
    "- **Ringlet f32**: ring attention as it trains, CPU backend, ranks on threads.\n"
    "- **Ringlet, bf16 operands**: the same ring, f32 from hop to hop.\n"
    "- **bf16 blocks, emulated**: every block's output, dQ, dK and dV are rounded to bf16 and "
    "merged in f32, as around\n"
    "  a kernel that returns 16-bit blocks.\n"
    "- **bf16 sums, emulated**: what has been merged is kept in bf16 from hop to hop, too.\n"
    "\n"
    "Emulated: plain loops over the same blocks in the same order, not the code of any other "
    "project.\n";

std::string growth_of(const Scheme& scheme, size_t quantity) {
  return fmt::format("{:.2f}", scheme.growth(quantity));
}

std::string error_table(const RingErrorReport& report) {
  std::string table = fmt::format("| {:<22} | {:<3} |", "scheme", "of");
  std::string ruler = fmt::format("|{:-<24}|{:-<5}|", "", "");
  for (const int ring_size : kRingSizes) {
    table += fmt::format(" {:>8} |", fmt::format("R = {}", ring_size));
    ruler += fmt::format("{:-<9}:|", "");
  }
  table += "\n" + ruler + "\n";
  for (size_t quantity = 0; quantity < kQuantities.size(); ++quantity) {
    for (const Scheme& scheme : report.schemes) {
      table += fmt::format("| {:<22} | {:<3} |", scheme.name, kQuantities[quantity]);
      for (const auto& errors : scheme.errors)
        table += fmt::format(" {:>8.2e} |", errors[quantity]);
      table += "\n";
    }
  }
  return table;
}

std::string growth_table(const RingErrorReport& report) {
  std::string table = fmt::format("| {:<22} |", "scheme");
  std::string ruler = fmt::format("|{:-<24}|", "");
  for (const char* const quantity : kQuantities) {
    table += fmt::format(" {:>5} |", quantity);
    ruler += fmt::format("{:-<6}:|", "");
  }
  table += "\n" + ruler + "\n";
  for (const Scheme& scheme : report.schemes) {
    table += fmt::format("| {:<22} |", scheme.name);
    for (size_t i = 0; i < kQuantities.size(); ++i) {
      table += fmt::format(" {:>5} |", growth_of(scheme, i));
    }
    table += "\n";
  }
  return table;
}

}  // namespace

bool RingErrorReport::holds() const {
  for (const Scheme& scheme : schemes) {
    if (scheme.origin != Origin::ringlet) continue;
    for (size_t i = 0; i < kQuantities.size(); ++i) {
      if (!(scheme.growth(i) <= kGrowthBar)) return false;
    }
  }
  return true;
}

std::string to_tables(const RingErrorReport& report) {
  return fmt::format("{}\nError on {} ranks relative to that on one:\n\n{}", error_table(report),
                     kRingSizes.back(), growth_table(report));
}

std::string to_markdown(const RingErrorReport& report, const std::string& picture) {
  const std::string image =
      picture.empty() ? "" : fmt::format("![Error of O over ring size]({})\n\n", picture);
  return fmt::format(
      "# Error of ring attention over the size of the ring\n\n{}\n"
      "T = {}, {} heads ({} of keys and values), head_dim {}, {} layout. {}, {}.\n\n"
      "    {}\n\n{}{}\nThe bar for Ringlet's own: at most {}. {}.\n",
      kSchemes, report.length, report.shape.heads, report.shape.kv_heads, report.shape.head_dim,
      name_of(report.layout), report.date, report.processor, report.command, image,
      to_tables(report), kGrowthBar, report.holds() ? "It holds" : "It does NOT hold");
}

std::string to_json(const RingErrorReport& report) {
  nlohmann::ordered_json json{
      {"date", report.date},
      {"processor", report.processor},
      {"command", report.command},
      {"length", report.length},
      {"heads", report.shape.heads},
      {"kv_heads", report.shape.kv_heads},
      {"head_dim", report.shape.head_dim},
      {"layout", name_of(report.layout)},
      {"ring_sizes", kRingSizes},
      {"growth_bar", kGrowthBar},
      {"holds", report.holds()},
  };
  for (const Scheme& scheme : report.schemes) {
    auto& entry = json["schemes"][scheme.key];
    entry["name"] = scheme.name;
    entry["emulated"] = scheme.origin == Origin::emulated_peer;
    for (size_t i = 0; i < kQuantities.size(); ++i) {
      for (const auto& errors : scheme.errors) {
        entry["relative_rms_error"][kQuantities[i]].push_back(errors[i]);
      }
      entry["growth"][kQuantities[i]] = scheme.growth(i);
    }
  }
  return json.dump(2) + "\n";
}

std::string to_svg(const RingErrorReport& report) {
  Plot plot;
  plot.title = fmt::format("Error of the attention output, T = {}, {}", report.length, name_of(report.layout));
  plot.x.label = fmt::format("ranks in the ring (at the right: error on {} ranks / error on one)", kRingSizes.back());
  plot.x.scale = plot.y.scale = AxisScale::logarithmic;
  plot.x.ticks.assign(kRingSizes.begin(), kRingSizes.end());
  plot.x.text = [](double ranks) { return fmt::format("{}", ranks); };
  plot.y.label = "relative RMS error of O against double precision";
  for (const Scheme& scheme : report.schemes) {
    Line line;
    line.label = scheme.name;
    line.stroke = scheme.origin == Origin::ringlet ? Stroke::solid : Stroke::dashed;
    line.end_note = growth_of(scheme, 0) + "×";
    line.x.assign(kRingSizes.begin(), kRingSizes.end());
    for (const auto& errors : scheme.errors) line.y.push_back(errors[0]);
    plot.lines.push_back(std::move(line));
  }
  return ringlet::to_svg(plot);
}

}  // namespace ringlet::bench
