#include "train/report/position_history.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>

namespace ringlet {
namespace {

std::string range_text(double low, double high) {
  return low == high ? fmt::format("{:.0f}", low) : fmt::format("{:.0f}-{:.0f}", low, high);
}

/// What both maps share: the steps, and an axis of positions.
HeatMap framed(const std::vector<double>& step_edges) {
  HeatMap map;
  map.x = {.label = "position in the window", .scale = AxisScale::logarithmic};
  map.x.text = [](double position) { return fmt::format("{:.0f}", position); };
  map.y = {.label = "step"};
  map.y_edges = step_edges;
  for (size_t row = 0; row + 1 < step_edges.size(); ++row) {
    map.row_names.push_back(range_text(step_edges[row] + 1, step_edges[row + 1]));
  }
  return map;
}

void set_ticks(HeatMap& map) {
  for (double tick = 1; tick <= map.x_edges.back(); tick *= 4) map.x.ticks.push_back(tick);
  map.y.ticks = round_ticks(AxisScale::linear, map.y_edges.front(), map.y_edges.back());
  std::erase_if(map.y.ticks, [](double step) { return step != std::round(step); });
}

}  // namespace

double middle_context(double first, double last) { return std::sqrt((first + 1) * (last + 1)); }

void PositionHistory::add(int64_t step, std::vector<Bin> bins) {
  if (!bins.empty()) steps_.push_back({step, std::move(bins)});
}

PositionHistory::Grid PositionHistory::grid(size_t rows, double least_tokens) const {
  struct Sum {
    double loss = 0, count = 0;
  };
  std::map<double, Bin>
      bins;  // by the first position; the last one differs where runs change their length
  for (const Step& step : steps_) {
    for (const Bin& bin : step.bins) {
      Bin& joined = bins.try_emplace(bin.first, bin).first->second;
      joined.last = std::max(joined.last, bin.last);
    }
  }
  Grid grid;
  for (const auto& [first, bin] : bins) grid.bins.push_back(bin);
  const size_t count = steps_.size(), row_count = std::min(rows, count);
  for (size_t row = 0; row < row_count; ++row) {
    const size_t begin = row * count / row_count, end = (row + 1) * count / row_count;
    std::map<double, Sum> sums;
    for (size_t i = begin; i < end; ++i) {
      for (const Bin& bin : steps_[i].bins) {
        if (bin.count == 0 || !std::isfinite(bin.mean)) continue;
        sums[bin.first].loss += bin.count * bin.mean;
        sums[bin.first].count += bin.count;
      }
    }
    std::vector<double>& means = grid.means.emplace_back();
    for (const Bin& bin : grid.bins) {
      const Sum& sum = sums[bin.first];
      means.push_back(sum.count > 0 && sum.count >= least_tokens ? sum.loss / sum.count : NAN);
    }
    if (begin == 0) grid.step_edges.push_back(double(steps_[begin].step) - 1);
    grid.step_edges.push_back(double(steps_[end - 1].step));
  }
  return grid;
}

HeatMap PositionHistory::loss_map(size_t rows, double least_tokens) const {
  Grid grid = this->grid(rows, least_tokens);
  HeatMap map = framed(grid.step_edges);
  map.title = "Loss by position and step";
  map.colour_label = "nats per token";
  // A bin of the positions 1 to 1 reaches to 1 + 1: positions are cells, their left edges the
  // ticks.
  for (const Bin& bin : grid.bins) {
    map.x_edges.push_back(bin.first + 1);
    map.column_names.push_back(range_text(bin.first + 1, bin.last + 1));
  }
  map.x_edges.push_back(grid.bins.back().last + 2);
  map.values = std::move(grid.means);
  set_ticks(map);
  return map;
}

HeatMap PositionHistory::slope_map(size_t rows, double least_tokens) const {
  const Grid grid = this->grid(rows, least_tokens);
  HeatMap map = framed(grid.step_edges);
  map.title = "Slope of the loss along the position";
  map.colour_label = "nats per token and e-fold";
  map.colours = Colours::diverging;
  map.values.resize(grid.means.size());
  std::vector<double> middles;
  for (const Bin& bin : grid.bins) middles.push_back(middle_context(bin.first, bin.last));
  for (size_t i = 0; i + 1 < middles.size(); ++i) {
    map.column_names.push_back(fmt::format("{:.3g}-{:.3g}", middles[i], middles[i + 1]));
    for (size_t row = 0; row < map.values.size(); ++row) {
      map.values[row].push_back((grid.means[row][i + 1] - grid.means[row][i]) /
                                std::log(middles[i + 1] / middles[i]));
    }
  }
  map.x_edges = std::move(middles);
  set_ticks(map);
  return map;
}

}  // namespace ringlet
