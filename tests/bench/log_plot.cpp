#include "tests/bench/log_plot.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>

#include "kernels/check.h"

namespace ringlet::bench {
namespace {

constexpr double kWidth = 720, kHeight = 470;
constexpr double kLeft = 76, kRight = 656, kTop = 46, kBottom = 356;
constexpr double kNoteGap = 15;  // between the baselines of two notes
constexpr const char* kInk = "#777";

/// Told apart by shape as well as by colour. Contrast above 3.5 to white and to near black.
struct Style {
  const char *colour, *marker;  // marker: a path around (0, 0)
};
constexpr std::array<Style, 4> kStyles{{
    {"#2f7fd0", "M-4.5,0a4.5,4.5 0 1,0 9,0a4.5,4.5 0 1,0 -9,0z"},
    {"#2a8f5c", "M-4,-4h8v8h-8z"},
    {"#b8741a", "M0,-5.2L4.8,3.6H-4.8z"},
    {"#d6506b", "M0,-5.5L5.5,0L0,5.5L-5.5,0z"},
}};

std::string escaped(const std::string& text) {
  std::string result;
  for (const char c : text) {
    switch (c) {
      case '&':
        result += "&amp;";
        break;
      case '<':
        result += "&lt;";
        break;
      case '>':
        result += "&gt;";
        break;
      case '"':
        result += "&quot;";
        break;
      default:
        result += c;
    }
  }
  return result;
}

/// A power of ten with its exponent in raised digits.
std::string power_of_ten(int exponent) {
  constexpr std::array kDigits{"⁰", "¹", "²", "³", "⁴", "⁵", "⁶", "⁷", "⁸", "⁹"};
  std::string text = exponent < 0 ? "10⁻" : "10";
  for (const char digit : std::to_string(std::abs(exponent)))
    text += kDigits.at(size_t(digit - '0'));
  return text;
}

class Picture {
 public:
  explicit Picture(const LogPlot& plot) : plot_(plot) {
    CHECK(plot.x_values.size() >= 2 && plot.lines.size() <= kStyles.size(), "a plot of ",
          plot.x_values.size(), " points and ", plot.lines.size(), " lines");
    double lowest = INFINITY, highest = 0;
    for (const Line& line : plot.lines) {
      CHECK(line.values.size() == plot.x_values.size(), "values of ", line.label);
      for (const double value : line.values) {
        CHECK(value > 0 && std::isfinite(value), line.label, " has the value ", value);
        lowest = std::min(lowest, value);
        highest = std::max(highest, value);
      }
    }
    lowest_power_ = int(std::floor(std::log10(lowest)));
    highest_power_ = std::max(int(std::ceil(std::log10(highest))), lowest_power_ + 1);
  }

  std::string draw() {
    svg_ = fmt::format(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {0} {1}\" width=\"{0}\" "
        "height=\"{1}\" "
        "font-family=\"Helvetica, Arial, 'DejaVu Sans', sans-serif\" font-size=\"13\" "
        "fill=\"{2}\">\n"
        "<title>{3}</title>\n",
        kWidth, kHeight, kInk, escaped(plot_.title));
    text((kLeft + kRight) / 2, 24, "middle", plot_.title, " font-size=\"15\" font-weight=\"bold\"");
    axes();
    for (size_t i = plot_.lines.size(); i-- > 0;) line(plot_.lines[i], kStyles[i]);
    notes();
    for (size_t i = 0; i < plot_.lines.size(); ++i) legend(i);
    return svg_ + "</svg>\n";
  }

 private:
  double x_of(int value) const {
    const double low = std::log(plot_.x_values.front()), high = std::log(plot_.x_values.back());
    return kLeft + 14 + (kRight - kLeft - 28) * (std::log(value) - low) / (high - low);
  }
  double y_of(double value) const {
    const double share = (std::log10(value) - lowest_power_) / (highest_power_ - lowest_power_);
    return kBottom - (kBottom - kTop) * share;
  }

  void text(double x, double y, const char* anchor, const std::string& words,
            const std::string& attributes = "") {
    svg_ += fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"{}\"{}>{}</text>\n", x, y,
                        anchor, attributes, escaped(words));
  }
  void rule(double x1, double y1, double x2, double y2, double opacity) {
    svg_ += fmt::format(
        "<line x1=\"{:.1f}\" y1=\"{:.1f}\" x2=\"{:.1f}\" y2=\"{:.1f}\" stroke=\"{}\" "
        "stroke-opacity=\"{}\"/>\n",
        x1, y1, x2, y2, kInk, opacity);
  }

  void axes() {
    for (int power = lowest_power_; power <= highest_power_; ++power) {
      const double y = y_of(std::pow(10.0, power));
      rule(kLeft, y, kRight, y, power == lowest_power_ ? 1 : 0.35);
      text(kLeft - 8, y + 4.5, "end", power_of_ten(power));
    }
    rule(kLeft, kTop, kLeft, kBottom, 1);
    for (const int value : plot_.x_values) {
      rule(x_of(value), kBottom, x_of(value), kBottom + 5, 1);
      text(x_of(value), kBottom + 21, "middle", std::to_string(value));
    }
    text((kLeft + kRight) / 2, kBottom + 43, "middle", plot_.x_label);
    const double middle = (kTop + kBottom) / 2;
    text(20, middle, "middle", plot_.y_label,
         fmt::format(" transform=\"rotate(-90 20 {:.1f})\"", middle));
  }

  void stroke(const std::string& points, Stroke stroke, const Style& style) {
    svg_ += fmt::format(
        "<polyline points=\"{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"2\"{}/>\n", points,
        style.colour, stroke == Stroke::dashed ? " stroke-dasharray=\"6 4\"" : "");
  }
  void marker(double x, double y, const Style& style) {
    svg_ += fmt::format("<path d=\"{}\" transform=\"translate({:.1f} {:.1f})\" fill=\"{}\"/>\n",
                        style.marker, x, y, style.colour);
  }

  void line(const Line& line, const Style& style) {
    std::string points;
    for (size_t i = 0; i < line.values.size(); ++i) {
      points += fmt::format("{:.1f},{:.1f} ", x_of(plot_.x_values[i]), y_of(line.values[i]));
    }
    stroke(points, line.stroke, style);
    for (size_t i = 0; i < line.values.size(); ++i) {
      marker(x_of(plot_.x_values[i]), y_of(line.values[i]), style);
    }
  }

  /// Beside the ends of the lines, from the top downwards, pushed apart where ends lie close
  /// together.
  void notes() {
    std::vector<size_t> order(plot_.lines.size());
    std::iota(order.begin(), order.end(), 0);
    const auto end_of = [&](size_t i) { return y_of(plot_.lines[i].values.back()); };
    std::ranges::sort(order, {}, end_of);
    double y = 0;
    for (const size_t i : order) {
      y = std::max(end_of(i) + 4.5, y + kNoteGap);
      text(kRight + 2, y, "start", plot_.lines[i].end_note,
           fmt::format(" fill=\"{}\" font-weight=\"bold\"", kStyles[i].colour));
    }
  }

  /// Below the plot, two in a row.
  void legend(size_t i) {
    const double x = kLeft + 14 + double(i % 2) * 285, y = kBottom + 72 + double(i / 2) * 24;
    stroke(fmt::format("{:.1f},{:.1f} {:.1f},{:.1f}", x, y, x + 36, y), plot_.lines[i].stroke,
           kStyles[i]);
    marker(x + 18, y, kStyles[i]);
    text(x + 44, y + 4.5, "start", plot_.lines[i].label);
  }

  const LogPlot& plot_;
  int lowest_power_ = 0, highest_power_ = 1;
  std::string svg_;
};

}  // namespace

std::string to_svg(const LogPlot& plot) { return Picture(plot).draw(); }

}  // namespace ringlet::bench
