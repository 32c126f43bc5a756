#include "train/study/study_page.h"

#include <fmt/format.h>

#include <algorithm>

#include "train/report/power_fit.h"

namespace ringlet {
namespace {

constexpr const char* kPosition = "position in the window, up to";

Plot curve_plot(const StudyResult& study, LossCurve VariantRun::*curve, std::string title,
                std::string label) {
  Plot plot{std::move(title),
            {.label = std::move(label), .scale = AxisScale::logarithmic},
            {.label = "nats per token"},
            {}};
  double longest = 1;
  for (const VariantResult& variant : study.variants) {
    if (!variant.mean) continue;
    const LossCurve& own = (*variant.mean).*curve;
    Line line{.label = variant.name,
              .y = own.mean,
              .style = int(plot.lines.size()),
              .column = variant.name};
    for (const double last : own.last) line.x.push_back(last + 1);
    for (const double x : line.x) longest = std::max(longest, x);
    plot.lines.push_back(std::move(line));
  }
  for (double tick = 1; tick <= longest; tick *= 4) plot.x.ticks.push_back(tick);
  plot.x.text = [](double position) { return fmt::format("{:.0f}", position); };
  return plot;
}

/// What each variant's curve by position is above the reference's, in bins that both have.
Plot difference_plot(const StudyResult& study) {
  Plot plot = curve_plot(study, &VariantRun::by_position,
                         "Validation loss by position, less that of " + study.reference, kPosition);
  plot.y.label = "difference, nats per token";
  const auto reference = std::ranges::find(plot.lines, study.reference, &Line::label);
  if (reference == plot.lines.end() || plot.lines.size() < 2) return {};
  const Line other = *reference;
  for (Line& line : plot.lines) {
    const Line own = line;
    line.x.clear();
    line.y.clear();
    for (size_t i = 0; i < own.x.size(); ++i) {
      const auto same = std::ranges::find(other.x, own.x[i]);
      if (same == other.x.end()) continue;
      line.x.push_back(own.x[i]);
      line.y.push_back(own.y[i] - other.y[size_t(same - other.x.begin())]);
    }
  }
  return plot;
}

std::string fits_text(const StudyResult& study) {
  std::string text;
  for (const VariantResult& variant : study.variants) {
    if (!variant.mean) continue;
    const LossCurve& curve = variant.mean->by_position;
    std::vector<double> contexts;
    for (size_t i = 0; i < curve.mean.size(); ++i)
      contexts.push_back(middle_context(curve.first[i], curve.last[i]));
    text += fmt::format("{}{}: {}", text.empty() ? "" : "; ", variant.name,
                        fit_power_law(contexts, curve.mean).text());
  }
  return text;
}

std::vector<std::vector<std::string>> setting_rows(const StudyResult& study) {
  std::vector<std::vector<std::string>> rows{{"setting", "value"}};
  for (const auto& [name, text] : study.settings) {
    if (text.find('\n') == std::string::npos) rows.push_back({name, text});
  }
  return rows;
}

std::string settings_text(const StudyResult& study, const char* name) {
  const auto found = study.settings.find(name);
  return found == study.settings.end() ? "" : found->second;
}

}  // namespace

void add_variant_study(HtmlPage& page, const StudyResult& study, std::string_view prefix) {
  page.paragraph("Result: " + result_text(study) + ".");
  page.lines(tables_text(study));
  const auto add = [&](const Plot& plot, const char* name, const std::string& caption) {
    page.figure(plot, fmt::format("{}{}", prefix, name), caption);
  };
  add(curve_plot(study, &VariantRun::by_position, "Validation loss by position", kPosition),
      "variants_position",
      "After training, all on the same tokens. Bins double. (alpha / c)^beta + gamma, c the middle "
      "of a bin: " +
          fits_text(study) + ".");
  add(difference_plot(study), "variants_difference",
      "The same curves less that of " + study.reference +
          ", where both have the bin. The first bins have few tokens.");
  if (std::ranges::any_of(study.runs, &VariantRun::several_documents)) {
    add(curve_plot(study, &VariantRun::by_distance, "Validation loss by distance into the document",
                   "tokens of its document up to it, up to"),
        "variants_distance",
        "After training, all on the same tokens. Bins double. A document that began before the "
        "window counts from the "
        "window's start.");
  }
  if (!study.metrics.empty()) {
    page.heading("The runs of the first seed");
    add_runs(page, study.metrics, fmt::format("{}runs_", prefix));
  }
  page.heading("What was run");
  page.table(setting_rows(study));
  page.lines(settings_text(study, "variants"));
  page.lines(settings_text(study, "config"));
}

}  // namespace ringlet
