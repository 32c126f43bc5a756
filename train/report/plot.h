#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace ringlet {

enum class AxisScale : uint8_t { linear, logarithmic };
enum class Stroke : uint8_t { solid, dashed, none };  // none: points alone
enum class Markers : uint8_t { all, none };

struct Axis {
  std::string label{};
  AxisScale scale = AxisScale::linear;
  std::vector<double> ticks{};                  // empty: chosen
  std::function<std::string(double)> text{};  // of a tick; absent: the number itself, powers of ten where ticks are
  std::optional<double> begin{};                // linear: where the axis begins at the latest, as in 0
};

/// One line of a plot. Points that are not numbers, or that a logarithmic axis does not have, are left out.
struct Line {
  std::string label{};              // in the legend; empty: not there
  std::vector<double> x{}, y{};     // as many of each
  Stroke stroke = Stroke::solid;
  Markers markers = Markers::all;
  int style = -1;                   // colour and marker; -1: the line's own number
  std::string end_note{};           // beside the last point
  std::string column{};             // its heading in a table of the plot's numbers; empty: not there
};

struct Plot {
  std::string title{};
  Axis x{}, y{};
  std::vector<Line> lines{};        // the first lies on top
};

/// Is there a point to draw?
bool has_points(const Plot& plot);

/// A self-contained SVG picture, without a background; its colours are in the middle between black and white, so that
/// either can lie under it. Throws Error when there is no point to draw.
std::string to_svg(const Plot& plot);

/// Where an axis from `low` to `high` has ticks: round numbers (1, 2 or 5 times a power of ten), at most eight or so;
/// logarithmic: powers of ten, and twice and five times these where there are few.
std::vector<double> round_ticks(AxisScale scale, double low, double high);

/// For text between the tags of HTML and SVG, and in attributes: &, <, > and both quotes, and control characters away.
std::string escaped(std::string_view text);

}  // namespace ringlet
