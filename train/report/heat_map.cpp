#include "train/report/heat_map.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <span>

#include "kernels/check.h"
#include "train/quantile.h"

namespace ringlet {
namespace {

constexpr double kMapWidth = 720, kMapHeight = 420;
constexpr double kMapLeft = 76, kMapRight = 590, kMapTop = 46, kMapBottom = 356;
constexpr double kBarLeft = 614, kBarRight = 634;
constexpr int kBarSteps = 62;  // of whole pixels, without seams
// The values beyond the ends of the colours: few low ones, and as many high ones as the start of a
// training has; of diverging ones by size.
constexpr double kLowest = 0.02, kHighest = 0.9;
constexpr const char* kMapInk = "#777";

struct Colour {
  int red, green, blue;
};

/// At equal distances, so even that straight lines between them stay so. Source: viridis of
/// matplotlib.
constexpr std::array<Colour, 11> kViridis{{{0x44, 0x01, 0x54},
                                           {0x48, 0x24, 0x75},
                                           {0x41, 0x44, 0x87},
                                           {0x35, 0x5f, 0x8d},
                                           {0x2a, 0x78, 0x8e},
                                           {0x21, 0x91, 0x8c},
                                           {0x22, 0xa8, 0x84},
                                           {0x44, 0xbf, 0x70},
                                           {0x7a, 0xd1, 0x51},
                                           {0xbd, 0xdf, 0x26},
                                           {0xfd, 0xe7, 0x25}}};
/// Source: RdBu of ColorBrewer, turned round.
constexpr std::array<Colour, 11> kBlueRed{{{0x05, 0x30, 0x61},
                                           {0x21, 0x66, 0xac},
                                           {0x43, 0x93, 0xc3},
                                           {0x92, 0xc5, 0xde},
                                           {0xd1, 0xe5, 0xf0},
                                           {0xf7, 0xf7, 0xf7},
                                           {0xfd, 0xdb, 0xc7},
                                           {0xf4, 0xa5, 0x82},
                                           {0xd6, 0x60, 0x4d},
                                           {0xb2, 0x18, 0x2b},
                                           {0x67, 0x00, 0x1f}}};

double flat(const Axis& axis, double value) {
  return axis.scale == AxisScale::linear ? value : std::log10(value);
}

class MapPicture {
 public:
  explicit MapPicture(const HeatMap& map) : map_(map), range_(colour_range(map)) {
    CHECK(has_cells(map), "the heat map '", map.title, "' has no cell");
    CHECK(map.y_edges.size() == map.values.size() + 1, map.y_edges.size(), " edges of ",
          map.values.size(), " rows");
    for (const auto& row : map.values) {
      CHECK(map.x_edges.size() == row.size() + 1, map.x_edges.size(), " edges of ", row.size(),
            " columns");
    }
  }

  std::string draw() {
    svg_ = fmt::format(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {0} {1}\" width=\"{0}\" "
        "height=\"{1}\" "
        "font-family=\"Helvetica, Arial, 'DejaVu Sans', sans-serif\" font-size=\"13\" "
        "fill=\"{2}\">\n"
        "<title>{3}</title>\n",
        kMapWidth, kMapHeight, kMapInk, escaped(map_.title));
    text((kMapLeft + kMapRight) / 2, 24, "middle", map_.title,
         " font-size=\"15\" font-weight=\"bold\"");
    cells();
    axes();
    legend();
    return svg_ + "</svg>\n";
  }

 private:
  double x_at(double value) const {
    const double low = flat(map_.x, map_.x_edges.front()), high = flat(map_.x, map_.x_edges.back());
    return kMapLeft + (kMapRight - kMapLeft) * (flat(map_.x, value) - low) / (high - low);
  }
  double y_at(double value) const {
    const double low = flat(map_.y, map_.y_edges.front()), high = flat(map_.y, map_.y_edges.back());
    return kMapBottom - (kMapBottom - kMapTop) * (flat(map_.y, value) - low) / (high - low);
  }
  double bar_at(double value) const {
    return kMapBottom - (kMapBottom - kMapTop) * (value - range_.low) / (range_.high - range_.low);
  }

  void text(double x, double y, const char* anchor, const std::string& words,
            const std::string& attributes = "") {
    svg_ += fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"{}\"{}>{}</text>\n", x, y,
                        anchor, attributes, escaped(words));
  }
  void mark(double x1, double y1, double x2, double y2) {
    svg_ += fmt::format(
        "<line x1=\"{:.1f}\" y1=\"{:.1f}\" x2=\"{:.1f}\" y2=\"{:.1f}\" stroke=\"{}\"/>\n", x1, y1,
        x2, y2, kMapInk);
  }
  void box(double left, double top, double right, double bottom, const std::string& colour) {
    svg_ += fmt::format(
        "<rect x=\"{:.1f}\" y=\"{:.1f}\" width=\"{:.1f}\" height=\"{:.1f}\" fill=\"{}\"/>\n", left,
        top, right - left, bottom - top, colour);
  }

  void cells() {
    svg_ += "<g shape-rendering=\"crispEdges\">\n";
    for (size_t row = 0; row < map_.values.size(); ++row) {
      const double top = y_at(map_.y_edges[row + 1]), bottom = y_at(map_.y_edges[row]);
      for (size_t column = 0; column < map_.values[row].size(); ++column) {
        const double value = map_.values[row][column];
        if (!std::isfinite(value)) continue;
        box(x_at(map_.x_edges[column]), top, x_at(map_.x_edges[column + 1]), bottom,
            colour_of(map_.colours, (value - range_.low) / (range_.high - range_.low)));
      }
    }
    svg_ += "</g>\n";
  }

  std::vector<double> ticks_of(const Axis& axis, const std::vector<double>& edges) const {
    std::vector<double> ticks =
        axis.ticks.empty() ? round_ticks(axis.scale, edges.front(), edges.back()) : axis.ticks;
    std::erase_if(ticks, [&](double tick) { return tick < edges.front() || tick > edges.back(); });
    return ticks;
  }
  static std::string words_of(const Axis& axis, double tick) {
    return axis.text ? axis.text(tick) : fmt::format("{:g}", tick);
  }

  void axes() {
    mark(kMapLeft, kMapBottom, kMapRight, kMapBottom);
    mark(kMapLeft, kMapTop, kMapLeft, kMapBottom);
    double free_from = 0;  // labels that would touch the one before are left out
    for (const double tick : ticks_of(map_.x, map_.x_edges)) {
      const double x = x_at(tick);
      mark(x, kMapBottom, x, kMapBottom + 5);
      const std::string words = words_of(map_.x, tick);
      const double half = 4.0 * double(words.size());
      if (x - half < free_from) continue;
      text(x, kMapBottom + 21, "middle", words);
      free_from = x + half + 4;
    }
    for (const double tick : ticks_of(map_.y, map_.y_edges)) {
      mark(kMapLeft - 5, y_at(tick), kMapLeft, y_at(tick));
      text(kMapLeft - 8, y_at(tick) + 4.5, "end", words_of(map_.y, tick));
    }
    text((kMapLeft + kMapRight) / 2, kMapBottom + 43, "middle", map_.x.label);
    rotated(16, map_.y.label);
  }

  void rotated(double x, const std::string& words) {
    const double middle = (kMapTop + kMapBottom) / 2;
    text(x, middle, "middle", words,
         fmt::format(" transform=\"rotate(-90 {:.1f} {:.1f})\"", x, middle));
  }

  void legend() {
    svg_ += "<g shape-rendering=\"crispEdges\">\n";
    const double step = (kMapBottom - kMapTop) / kBarSteps;
    for (int i = 0; i < kBarSteps; ++i) {
      const double bottom = kMapBottom - i * step;
      box(kBarLeft, bottom - step, kBarRight, bottom,
          colour_of(map_.colours, (i + 0.5) / kBarSteps));
    }
    svg_ += "</g>\n";
    for (const double tick : round_ticks(AxisScale::linear, range_.low, range_.high)) {
      if (tick < range_.low || tick > range_.high) continue;
      mark(kBarRight, bar_at(tick), kBarRight + 5, bar_at(tick));
      text(kBarRight + 9, bar_at(tick) + 4.5, "start", fmt::format("{:g}", tick));
    }
    rotated(kMapWidth - 14, map_.colour_label);
  }

  const HeatMap& map_;
  const ColourRange range_;
  std::string svg_;
};

}  // namespace

bool has_cells(const HeatMap& map) {
  return std::ranges::any_of(map.values, [](const std::vector<double>& row) {
    return std::ranges::any_of(row, [](double value) { return std::isfinite(value); });
  });
}

ColourRange colour_range(const HeatMap& map) {
  std::vector<double> values;
  for (const auto& row : map.values) {
    std::ranges::copy_if(row, std::back_inserter(values),
                         [](double value) { return std::isfinite(value); });
  }
  if (values.empty()) return {};
  ColourRange range{quantile(values, kLowest), quantile(values, kHighest)};
  if (map.colours == Colours::diverging) {
    for (double& value : values) value = std::abs(value);
    range.high = quantile(values, kHighest);
    range.low = -range.high;
  }
  if (range.high > range.low) return range;
  const double by = range.low == 0 ? 1 : std::abs(range.low) / 2;  // all cells alike
  return {range.low - by, range.high + by};
}

std::string colour_of(Colours colours, double share) {
  const std::span<const Colour> stops = colours == Colours::sequential ? kViridis : kBlueRed;
  const double place = std::clamp(share, 0.0, 1.0) * double(stops.size() - 1);
  const size_t below = std::min(size_t(place), stops.size() - 2);
  const double part = place - double(below);
  const Colour &from = stops[below], &to = stops[below + 1];
  const auto mixed = [&](int Colour::*channel) {
    return int(std::lround(from.*channel + part * (to.*channel - from.*channel)));
  };
  return fmt::format("#{:02x}{:02x}{:02x}", mixed(&Colour::red), mixed(&Colour::green),
                     mixed(&Colour::blue));
}

std::string to_svg(const HeatMap& map) { return MapPicture(map).draw(); }

std::vector<std::vector<std::string>> table_of(const HeatMap& map) {
  std::vector<std::vector<std::string>> table{{map.y.label}};
  table[0].insert(table[0].end(), map.column_names.begin(), map.column_names.end());
  for (size_t row = 0; row < map.values.size(); ++row) {
    table.push_back({map.row_names.at(row)});
    for (const double value : map.values[row]) {
      table.back().push_back(std::isfinite(value) ? fmt::format("{:.4g}", value) : "");
    }
  }
  return table;
}

}  // namespace ringlet
