#include "train/report/html.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>

#include "train/files.h"

namespace ringlet {
namespace {

constexpr std::string_view kStyle = R"(
:root { color-scheme: light dark; --ink: #222; --quiet: #666; --paper: #fff; --rule: #ddd; }
@media (prefers-color-scheme: dark) { :root { --ink: #ddd; --quiet: #999; --paper: #16181c; --rule: #383c44; } }
body { margin: 0 auto; padding: 1rem; max-width: 60rem; color: var(--ink); background: var(--paper);
  font: 16px/1.5 Helvetica, Arial, 'DejaVu Sans', sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2.5rem; }
figure { margin: 1rem 0 0; overflow-x: auto; }
figure svg { display: block; min-width: 28rem; max-width: 100%; height: auto; }
p.caption { color: var(--quiet); margin: 0.25rem 0; }
pre { overflow-x: auto; font-size: 0.8rem; line-height: 1.4; }
div.table { overflow: auto; max-height: 24rem; margin: 0.5rem 0 1.5rem; border: 1px solid var(--rule); }
table { border-collapse: collapse; font-size: 0.85rem; font-variant-numeric: tabular-nums; min-width: 40%; }
th, td { padding: 0.2rem 0.7rem; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
th { position: sticky; top: 0; background: var(--paper); border-bottom: 1px solid var(--rule); }
tr:nth-child(even) td { background: color-mix(in srgb, var(--rule) 25%, transparent); }
@media print { div.table { max-height: none; } }
)";

std::string number_text(double value) {
  if (!std::isfinite(value)) return "";
  return value == std::round(value) && std::abs(value) < 1e15 ? fmt::format("{:.0f}", value) : fmt::format("{:.5g}", value);
}

}  // namespace

HtmlPage::HtmlPage(std::string_view title) : title_(title) { body_ = fmt::format("<h1>{}</h1>\n", escaped(title)); }

void HtmlPage::heading(std::string_view text) { body_ += fmt::format("<h2>{}</h2>\n", escaped(text)); }

void HtmlPage::paragraph(std::string_view text) { body_ += fmt::format("<p>{}</p>\n", escaped(text)); }

void HtmlPage::lines(std::string_view text) { body_ += fmt::format("<pre>{}</pre>\n", escaped(text)); }

void HtmlPage::table(const std::vector<std::vector<std::string>>& rows) {
  body_ += "<div class=\"table\"><table>\n";
  for (size_t i = 0; i < rows.size(); ++i) {
    const char* const tag = i == 0 ? "th" : "td";
    body_ += i == 0 ? "<thead><tr>" : "<tr>";
    for (const std::string& cell : rows[i]) body_ += fmt::format("<{0}>{1}</{0}>", tag, escaped(cell));
    body_ += i == 0 ? "</tr></thead>\n" : "</tr>\n";
  }
  body_ += "</table></div>\n";
}

void HtmlPage::figure(const Plot& plot, std::string_view name, std::string_view caption) {
  if (!has_points(plot)) return;
  add_picture({std::string(name), to_svg(plot)}, plot.title, caption);
  table(table_of(plot));
}

void HtmlPage::figure(const HeatMap& map, std::string_view name, std::string_view caption) {
  if (!has_cells(map)) return;
  add_picture({std::string(name), to_svg(map)}, map.title, caption);
  table(table_of(map));
}

void HtmlPage::add_picture(Picture picture, std::string_view title, std::string_view caption) {
  heading(title);
  body_ += fmt::format("<figure>\n{}</figure>\n<p class=\"caption\">{}</p>\n", picture.svg, escaped(caption));
  pictures_.push_back(std::move(picture));
}

void HtmlPage::write(const std::filesystem::path& path) const {
  const std::string page = fmt::format(
      "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
      "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>{}</title>\n<style>{}</style>\n"
      "</head>\n<body>\n{}</body>\n</html>\n",
      escaped(title_), kStyle, body_);
  for (const Picture& picture : pictures_) {
    write_atomically(path.parent_path() / fmt::format("{}_{}.svg", path.stem().string(), picture.name), picture.svg);
  }
  write_atomically(path, page);
}

std::vector<std::vector<std::string>> table_of(const Plot& plot) {
  std::vector<std::vector<std::string>> table{{plot.x.label}};
  std::map<double, std::vector<std::string>> rows;
  size_t columns = 0;
  for (const Line& line : plot.lines) {
    if (line.column.empty()) continue;
    table[0].push_back(line.column);
    ++columns;
    for (size_t i = 0; i < line.x.size(); ++i) {
      std::vector<std::string>& row = rows[line.x[i]];
      row.resize(columns);
      row.back() = number_text(line.y[i]);
    }
  }
  for (auto& [x, row] : rows) {
    row.resize(columns);
    row.insert(row.begin(), plot.x.text ? plot.x.text(x) : number_text(x));
    table.push_back(std::move(row));
  }
  return table;
}

}  // namespace ringlet
