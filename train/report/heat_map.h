#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "train/report/plot.h"

namespace ringlet {

/// sequential: dark is low, light is high (viridis). diverging: blue below 0, red above, white at 0
/// (RdBu). Both keep their order in lightness or hue for people who do not see red and green apart.
enum class Colours : uint8_t { sequential, diverging };

/// Rows of coloured cells. Cells that are not numbers stay empty.
struct HeatMap {
  std::string title{}, colour_label{};
  Axis x{}, y{};  // y: the numbers of rows stand at their upper edges
  std::vector<double> x_edges{},
      y_edges{};  // ascending, in the axis' scale; one more than columns, than rows
  std::vector<std::vector<double>> values{};             // [row][column], the lowest row first
  std::vector<std::string> row_names{}, column_names{};  // in the table
  Colours colours = Colours::sequential;
};

/// Is there a cell with a number?
bool has_cells(const HeatMap& map);

/// The values that get the first and the last colour: the 2nd and 90th percentile; for diverging
/// colours the 90th percentile of the size, on both sides of 0. So few cells do not take the
/// colours from all others. Values beyond get the end's colour.
struct ColourRange {
  double low = 0, high = 1;
};
ColourRange colour_range(const HeatMap& map);

/// "#rrggbb" of a share of the range, 0 to 1; beyond, the end's.
std::string colour_of(Colours colours, double share);

/// A self-contained SVG picture with a legend of colours, as to_svg(Plot). Throws Error when there
/// is no cell to draw.
std::string to_svg(const HeatMap& map);

/// The numbers: a row for each row of the map, the lowest first. The first row is the heading.
std::vector<std::vector<std::string>> table_of(const HeatMap& map);

}  // namespace ringlet
