#include "train/report/study_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

namespace ringlet {
namespace {

constexpr int kCurvePoints = 60;

double length_of(const Cell& cell) { return double(cell.seq_len); }

/// The measured cells of one series, in the order of x.
template <class Belongs, class X>
std::vector<Cell> series(const Study& study, const Belongs& belongs, const X& x) {
  std::vector<Cell> cells;
  for (const Cell& cell : study.cells) {
    if (cell.status == CellStatus::done && belongs(cell)) cells.push_back(cell);
  }
  std::ranges::sort(cells, {}, x);
  return cells;
}

std::vector<Cell> on_ranks(const Study& study, int64_t ranks) {
  return series(study, [&](const Cell& cell) { return cell.ranks == ranks; }, length_of);
}

Line line_of(const std::vector<Cell>& cells, double (*x)(const Cell&), double Cell::*y, int style) {
  Line line;
  line.style = style;
  for (const Cell& cell : cells) {
    line.x.push_back(x(cell));
    line.y.push_back(cell.*y);
  }
  return line;
}

bool is_known(const Line& line) {
  return std::ranges::any_of(line.y, [](double y) { return std::isfinite(y); });
}

std::string ranks_text(int64_t ranks) { return fmt::format("{} rank{}", ranks, ranks == 1 ? "" : "s"); }

Axis length_axis(const Study& study) {
  Axis axis{.label = "T, tokens", .scale = AxisScale::logarithmic, .text = length_text};
  for (const Cell& cell : study.cells) axis.ticks.push_back(length_of(cell));
  std::ranges::sort(axis.ticks);
  axis.ticks.erase(std::ranges::unique(axis.ticks).begin(), axis.ticks.end());
  return axis;
}

/// For each number of ranks what was measured, and dashed what was predicted.
struct Pair {
  double Cell::*measured;
  double Cell::*predicted;
  Stroke stroke = Stroke::solid;  // of what was measured
};

void add_pairs(Plot& plot, const Study& study, double (*x)(const Cell&), const Pair& pair) {
  for (size_t i = 0; i < study.fits.size(); ++i) {
    const int64_t ranks = study.fits[i].ranks;
    const std::vector<Cell> cells = on_ranks(study, ranks);
    Line measured = line_of(cells, x, pair.measured, int(i));
    measured.label = measured.column = ranks_text(ranks);
    measured.stroke = pair.stroke;
    plot.lines.push_back(std::move(measured));
    if (pair.predicted == nullptr) continue;
    Line predicted = line_of(cells, x, pair.predicted, int(i));
    predicted.column = ranks_text(ranks) + ", predicted";
    predicted.stroke = Stroke::dashed;
    predicted.markers = Markers::none;
    if (is_known(predicted)) plot.lines.push_back(std::move(predicted));
  }
}

void add_fit(Plot& plot, const FitsOfRanks& fits, int style) {
  if (fits.time.coefficients.empty()) return;
  Line curve;
  curve.style = style;
  curve.markers = Markers::none;
  const double low = std::log(fits.lengths.front()), high = std::log(fits.lengths.back());
  for (int i = 0; i <= kCurvePoints; ++i) {
    curve.x.push_back(std::exp(low + (high - low) * i / kCurvePoints));
    curve.y.push_back(fits.time.at(curve.x.back()));
  }
  plot.lines.push_back(std::move(curve));
}

Plot time_plot(const Study& study) {
  Plot plot{"Time of a step", length_axis(study), {.label = "ms", .scale = AxisScale::logarithmic}, {}};
  plot.y.text = [](double ms) { return fmt::format("{:g}", ms); };
  add_pairs(plot, study, length_of, {&Cell::step_ms, &Cell::predicted_step_ms, Stroke::none});
  for (size_t i = 0; i < study.fits.size(); ++i) add_fit(plot, study.fits[i], int(i));
  return plot;
}

Plot speed_plot(const Study& study) {
  Plot plot{"Tokens per second of each rank", length_axis(study), {.label = "tokens/s a rank", .begin = 0}, {}};
  add_pairs(plot, study, length_of, {&Cell::tokens_per_second_per_rank, nullptr});
  return plot;
}

Plot memory_plot(const Study& study) {
  Plot plot{"Memory of the fullest rank", length_axis(study), {.label = "MB", .scale = AxisScale::logarithmic}, {}};
  plot.y.text = [](double bytes) { return fmt::format("{:g}", bytes / 1e6); };
  add_pairs(plot, study, length_of, {&Cell::peak_bytes, &Cell::predicted_peak_bytes, Stroke::none});
  return plot;
}

double ranks_of(const Cell& cell) { return double(cell.ranks); }

/// Over the ranks: for each T (strong), or for each share of tokens (weak).
Plot efficiency_plot(const Study& study) {
  const bool weak = study.mode() == "weak";
  Plot plot{weak ? "Weak efficiency" : "Strong efficiency", {.label = "ranks", .scale = AxisScale::logarithmic},
            {.label = "% of the fewest ranks", .begin = 0}, {}};
  for (const FitsOfRanks& fits : study.fits) plot.x.ticks.push_back(double(fits.ranks));
  plot.x.text = [](double ranks) { return fmt::format("{:g}", ranks); };
  const auto key = [&](const Cell& cell) { return weak ? cell.tokens_per_rank : length_of(cell); };
  std::vector<double> keys;
  for (const Cell& cell : study.cells) {
    if (cell.status == CellStatus::done) keys.push_back(key(cell));
  }
  std::ranges::sort(keys);
  keys.erase(std::ranges::unique(keys).begin(), keys.end());
  for (const double value : keys) {
    const auto cells = series(study, [&](const Cell& cell) { return key(cell) == value; }, ranks_of);
    if (cells.size() < 2) continue;
    Line line = line_of(cells, ranks_of, weak ? &Cell::weak_percent : &Cell::strong_percent, -1);
    line.label = line.column = (weak ? "tokens a rank = " : "T = ") + length_text(value);
    plot.lines.push_back(std::move(line));
  }
  return plot;
}

double share_of(const Cell& cell) { return cell.tokens_per_rank; }

Plot bubble_plot(const Study& study) {
  Plot plot{"Bubble", {.label = "tokens a rank", .scale = AxisScale::logarithmic, .text = length_text},
            {.label = "% of a step that ranks wait", .begin = 0}, {}};
  for (const Cell& cell : study.cells) plot.x.ticks.push_back(share_of(cell));
  std::erase_if(plot.x.ticks, [](double tick) { return !std::isfinite(tick); });
  std::ranges::sort(plot.x.ticks);
  plot.x.ticks.erase(std::ranges::unique(plot.x.ticks).begin(), plot.x.ticks.end());
  add_pairs(plot, study, share_of, {&Cell::bubble_percent, &Cell::predicted_bubble_percent});
  return plot;
}

}  // namespace

void add_study(HtmlPage& page, const Study& study, std::string_view prefix) {
  page.lines(to_text(study));
  const auto add = [&](const Plot& plot, std::string_view name, std::string_view caption) {
    page.figure(plot, fmt::format("{}{}", prefix, name), caption);
  };
  add(time_plot(study), "time",
      "Points: medians of the measured steps, in ms. Lines: a + b T + c T^2, fitted to the fastest tenth. Dashed: "
      "predicted by the plan.");
  add(speed_plot(study), "speed", "Measured.");
  add(memory_plot(study), "memory", "Points: high-water mark of the arena. Dashed: predicted by the plan. The table: bytes.");
  add(efficiency_plot(study), "efficiency",
      "Model FLOP/s of a core (or GPU) beside the fewest ranks; ranks that share cores are measured by the cores.");
  add(bubble_plot(study), "bubble",
      "Share of a step in which a rank stands still for messages, mean of the ranks. Dashed: predicted by the plan. On "
      "machines with fewer cores than threads a rank also waits for a core.");
}

}  // namespace ringlet
