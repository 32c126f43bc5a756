#pragma once

#include <string>
#include <vector>

namespace ringlet::bench {

enum class Stroke { solid, dashed };

/// One line of a plot: as many values as the plot has x values, each above 0.
struct Line {
  std::string label;
  std::vector<double> values;
  Stroke stroke = Stroke::solid;
  std::string end_note;  // beside the last point
};

struct LogPlot {
  std::string title, x_label, y_label;
  std::vector<int> x_values;  // ascending, above 0, at least two
  std::vector<Line> lines;    // at most four; the first lies on top
};

/// A self-contained SVG picture, both axes logarithmic: x with a tick at each value, y at each
/// power of ten. Without a background; its colours are in the middle between black and white, so
/// that either can lie under it. Throws Error on values that a logarithmic axis does not have.
std::string to_svg(const LogPlot& plot);

}  // namespace ringlet::bench
