#include "train/report/plot.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>

#include "kernels/check.h"

namespace ringlet {
namespace {

constexpr double kWidth = 720;
constexpr double kLeft = 76, kRight = 656, kTop = 46, kBottom = 356;
constexpr double kInset = 14;    // of the first and last point from the frame
constexpr double kNoteGap = 15;  // between the baselines of two notes
constexpr double kLegendRow = 24;
constexpr const char* kInk = "#777";

/// Told apart by shape as well as by colour. Contrast above 3 to white and to near black.
struct Style {
  const char *colour, *marker;  // marker: a path around (0, 0)
};
constexpr std::array<Style, 8> kStyles{{
    {"#2f7fd0", "M-4.5,0a4.5,4.5 0 1,0 9,0a4.5,4.5 0 1,0 -9,0z"},
    {"#2a8f5c", "M-4,-4h8v8h-8z"},
    {"#b8741a", "M0,-5.2L4.8,3.6H-4.8z"},
    {"#d6506b", "M0,-5.5L5.5,0L0,5.5L-5.5,0z"},
    {"#8a63c9", "M0,5.2L4.8,-3.6H-4.8z"},
    {"#1f8f9c", "M-5,-1.7h3.3v-3.3h3.4v3.3h3.3v3.4h-3.3v3.3h-3.4v-3.3h-3.3z"},
    {"#96790a", "M-5,-3h10v6h-10z"},
    {"#b0559f", "M-3,-5h6v10h-6z"},
}};

/// A power of ten with its exponent in raised digits.
std::string power_of_ten(int exponent) {
  constexpr std::array kDigits{"⁰", "¹", "²", "³", "⁴", "⁵", "⁶", "⁷", "⁸", "⁹"};
  std::string text = exponent < 0 ? "10⁻" : "10";
  for (const char digit : std::to_string(std::abs(exponent))) text += kDigits.at(size_t(digit - '0'));
  return text;
}

bool is_power_of_ten(double value) {
  return value > 0 && std::abs(std::log10(value) - std::round(std::log10(value))) < 1e-9;
}

/// An axis with its ends, as it lies on the picture.
struct Ruler {
  const Axis& axis;
  double low = INFINITY, high = -INFINITY;  // of the points, then of the axis
  double start = 0, end = 0;                // in the picture
  std::vector<double> ticks{};

  bool has(double value) const {
    return std::isfinite(value) && (axis.scale == AxisScale::linear || value > 0);
  }
  double flat(double value) const { return axis.scale == AxisScale::linear ? value : std::log10(value); }
  double at(double value) const { return start + (end - start) * (flat(value) - flat(low)) / (flat(high) - flat(low)); }

  void take(double value) {
    low = std::min(low, value);
    high = std::max(high, value);
  }
  /// A range of one point becomes one with two ends.
  void widen() {
    if (axis.begin && axis.scale == AxisScale::linear) take(*axis.begin);
    if (low < high) return;
    const bool log = axis.scale == AxisScale::logarithmic;
    const double by = low == 0 ? 1 : std::abs(low) / 2;
    low -= log ? low / 2 : by;
    high += log ? high : by;
  }
  /// Ends at ticks, so that the topmost grid line is above all points.
  void round_out() {
    ticks = round_ticks(axis.scale, low, high);
    low = std::min(low, ticks.front());
    high = std::max(high, ticks.back());
  }
  std::string text(double value) const {
    if (axis.text) return axis.text(value);
    const bool powers = axis.scale == AxisScale::logarithmic && std::ranges::all_of(ticks, is_power_of_ten);
    return powers ? power_of_ten(int(std::lround(std::log10(value)))) : fmt::format("{:g}", value);
  }
};

class Picture {
 public:
  explicit Picture(const Plot& plot) : plot_(plot), x_{plot.x}, y_{plot.y} {
    CHECK(has_points(plot), "the plot '", plot.title, "' has no point");
    for (const Line& line : plot.lines) {
      CHECK(line.x.size() == line.y.size(), "points of ", line.label);
      for (size_t i = 0; i < line.x.size(); ++i) {
        if (!shown(line, i)) continue;
        x_.take(line.x[i]);
        y_.take(line.y[i]);
      }
    }
    x_.widen();
    y_.widen();
    y_.round_out();
    x_.start = kLeft + kInset;
    x_.end = kRight - kInset;
    y_.start = kBottom;
    y_.end = kTop;
    x_.ticks = plot.x.ticks.empty() ? round_ticks(plot.x.scale, x_.low, x_.high) : plot.x.ticks;
    std::erase_if(x_.ticks, [&](double tick) { return tick < x_.low || tick > x_.high; });
    for (const Line& line : plot.lines) named_ += line.label.empty() ? 0 : 1;
  }

  std::string draw() {
    const double height = kBottom + 66 + kLegendRow * double((named_ + 1) / 2);
    svg_ = fmt::format(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {0} {1}\" width=\"{0}\" height=\"{1}\" "
        "font-family=\"Helvetica, Arial, 'DejaVu Sans', sans-serif\" font-size=\"13\" fill=\"{2}\">\n"
        "<title>{3}</title>\n",
        kWidth, height, kInk, escaped(plot_.title));
    text((kLeft + kRight) / 2, 24, "middle", plot_.title, " font-size=\"15\" font-weight=\"bold\"");
    axes();
    for (size_t i = plot_.lines.size(); i-- > 0;) line(plot_.lines[i], style_of(i));
    notes();
    int place = 0;
    for (size_t i = 0; i < plot_.lines.size(); ++i) {
      if (!plot_.lines[i].label.empty()) legend(plot_.lines[i], style_of(i), place++);
    }
    return svg_ + "</svg>\n";
  }

 private:
  bool shown(const Line& line, size_t i) const { return x_.has(line.x[i]) && y_.has(line.y[i]); }
  const Style& style_of(size_t i) const {
    const int style = plot_.lines[i].style;
    return kStyles[(style < 0 ? i : size_t(style)) % kStyles.size()];
  }

  void text(double x, double y, const char* anchor, const std::string& words, const std::string& attributes = "") {
    svg_ += fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"{}\"{}>{}</text>\n", x, y, anchor, attributes,
                        escaped(words));
  }
  void rule(double x1, double y1, double x2, double y2, double opacity) {
    svg_ += fmt::format(
        "<line x1=\"{:.1f}\" y1=\"{:.1f}\" x2=\"{:.1f}\" y2=\"{:.1f}\" stroke=\"{}\" stroke-opacity=\"{}\"/>\n", x1, y1,
        x2, y2, kInk, opacity);
  }

  void axes() {
    for (const double tick : y_.ticks) {
      const double y = y_.at(tick);
      rule(kLeft, y, kRight, y, 0.3);
      text(kLeft - 8, y + 4.5, "end", y_.text(tick));
    }
    rule(kLeft, kBottom, kRight, kBottom, 1);
    rule(kLeft, kTop, kLeft, kBottom, 1);
    double free_from = 0;  // labels that would touch the one before are left out
    for (const double tick : x_.ticks) {
      const double x = x_.at(tick);
      rule(x, kBottom, x, kBottom + 5, 1);
      const std::string words = x_.text(tick);
      const double half = 4.0 * double(words.size());
      if (x - half < free_from) continue;
      text(x, kBottom + 21, "middle", words);
      free_from = x + half + 4;
    }
    text((kLeft + kRight) / 2, kBottom + 43, "middle", plot_.x.label);
    const double middle = (kTop + kBottom) / 2;
    text(16, middle, "middle", plot_.y.label, fmt::format(" transform=\"rotate(-90 16 {:.1f})\"", middle));
  }

  void stroke(const std::string& points, Stroke stroke, const Style& style) {
    if (stroke == Stroke::none) return;
    svg_ += fmt::format("<polyline points=\"{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"2\"{}/>\n", points,
                        style.colour, stroke == Stroke::dashed ? " stroke-dasharray=\"6 4\"" : "");
  }
  void marker(double x, double y, const Style& style) {
    svg_ += fmt::format("<path d=\"{}\" transform=\"translate({:.1f} {:.1f})\" fill=\"{}\"/>\n", style.marker, x, y,
                        style.colour);
  }

  void line(const Line& line, const Style& style) {
    std::string points;
    for (size_t i = 0; i < line.x.size(); ++i) {
      if (shown(line, i)) points += fmt::format("{:.1f},{:.1f} ", x_.at(line.x[i]), y_.at(line.y[i]));
    }
    stroke(points, line.stroke, style);
    for (size_t i = 0; line.markers == Markers::all && i < line.x.size(); ++i) {
      if (shown(line, i)) marker(x_.at(line.x[i]), y_.at(line.y[i]), style);
    }
  }

  /// Beside the ends of the lines, from the top downwards, pushed apart where ends lie close together.
  void notes() {
    std::vector<size_t> order;
    for (size_t i = 0; i < plot_.lines.size(); ++i) {
      const Line& line = plot_.lines[i];
      if (!line.end_note.empty() && !line.x.empty() && shown(line, line.x.size() - 1)) order.push_back(i);
    }
    const auto end_of = [&](size_t i) { return y_.at(plot_.lines[i].y.back()); };
    std::ranges::sort(order, {}, end_of);
    double y = 0;
    for (const size_t i : order) {
      y = std::max(end_of(i) + 4.5, y + kNoteGap);
      text(kRight + 2, y, "start", plot_.lines[i].end_note,
           fmt::format(" fill=\"{}\" font-weight=\"bold\"", style_of(i).colour));
    }
  }

  /// Below the plot, two in a row.
  void legend(const Line& line, const Style& style, int place) {
    const double x = kLeft + kInset + double(place % 2) * 285, y = kBottom + 72 + double(place / 2) * kLegendRow;
    stroke(fmt::format("{:.1f},{:.1f} {:.1f},{:.1f}", x, y, x + 36, y), line.stroke, style);
    if (line.markers == Markers::all) marker(x + 18, y, style);
    text(x + 44, y + 4.5, "start", line.label);
  }

  const Plot& plot_;
  Ruler x_, y_;
  int named_ = 0;
  std::string svg_;
};

}  // namespace

bool has_points(const Plot& plot) {
  const Ruler x{plot.x}, y{plot.y};
  return std::ranges::any_of(plot.lines, [&](const Line& line) {
    for (size_t i = 0; i < std::min(line.x.size(), line.y.size()); ++i) {
      if (x.has(line.x[i]) && y.has(line.y[i])) return true;
    }
    return false;
  });
}

std::string to_svg(const Plot& plot) { return Picture(plot).draw(); }

std::vector<double> round_ticks(AxisScale scale, double low, double high) {
  std::vector<double> ticks{};
  if (scale == AxisScale::linear) {
    const double rough = (high - low) / 6, power = std::pow(10, std::floor(std::log10(rough)));
    double step = 10 * power;
    for (const double factor : {1.0, 2.0, 5.0}) {
      if (factor * power >= rough * (1 - 1e-9)) step = std::min(step, factor * power);
    }
    // Whole multiples of the step, so that 0 is 0.
    const auto first = int64_t(std::floor(low / step + 1e-9)), last = int64_t(std::ceil(high / step - 1e-9));
    for (int64_t i = first; i <= last; ++i) ticks.push_back(double(i) * step);
    return ticks;
  }
  const int first = int(std::floor(std::log10(low) + 1e-9)), last = int(std::ceil(std::log10(high) - 1e-9));
  const bool few = last - first <= 2;
  for (int power = first; power <= last; ++power) {
    for (const double factor : few ? std::vector{1.0, 2.0, 5.0} : std::vector{1.0}) {
      ticks.push_back(factor * std::pow(10.0, power));
    }
  }
  // The ends: the last tick not above the lowest value, the first not below the highest.
  while (ticks.size() > 2 && ticks[1] <= low * (1 + 1e-9)) ticks.erase(ticks.begin());
  while (ticks.size() > 2 && ticks[ticks.size() - 2] >= high * (1 - 1e-9)) ticks.pop_back();
  return ticks;
}

std::string escaped(std::string_view text) {
  std::string result;
  for (const char c : text) {
    switch (c) {
      case '&': result += "&amp;"; break;
      case '<': result += "&lt;"; break;
      case '>': result += "&gt;"; break;
      case '"': result += "&quot;"; break;
      case '\'': result += "&#39;"; break;
      default:
        if (static_cast<unsigned char>(c) >= 0x20 || c == '\n') result += c;
    }
  }
  return result;
}

}  // namespace ringlet
