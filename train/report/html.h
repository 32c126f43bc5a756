#pragma once

#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "train/report/heat_map.h"
#include "train/report/plot.h"

namespace ringlet {

/// A self-contained page: style and pictures inside, light or dark as the reader's system is, no scripts, nothing loaded.
/// Every text is escaped here.
class HtmlPage {
 public:
  explicit HtmlPage(std::string_view title);
  void heading(std::string_view text);
  void paragraph(std::string_view text);
  void lines(std::string_view text);  // line by line, blanks kept
  void table(const std::vector<std::vector<std::string>>& rows);  // the first row is the heading

  /// The plot, what it shows in a sentence, and a table of its numbers. `name` is that of its file. Nothing when the plot
  /// has no point.
  void figure(const Plot& plot, std::string_view name, std::string_view caption);
  void figure(const HeatMap& map, std::string_view name, std::string_view caption);

  /// Writes the page, and each plot beside it as STEM_NAME.svg. Readers see the old files or the new ones.
  void write(const std::filesystem::path& path) const;

 private:
  struct Picture {
    std::string name, svg;
  };
  void add_picture(Picture picture, std::string_view title, std::string_view caption);
  std::string title_, body_;
  std::vector<Picture> pictures_;
};

/// The numbers of a plot: a row for each x, a column for each line that has one. The first row is the heading.
std::vector<std::vector<std::string>> table_of(const Plot& plot);

}  // namespace ringlet
