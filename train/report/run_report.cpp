#include "train/report/run_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <deque>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>

#include "kernels/check.h"
#include "train/console.h"
#include "train/plan/plan.h"
#include "train/report/power_fit.h"
#include "train/quantile.h"
#include "train/stages.h"

namespace ringlet {
namespace {

using Json = nlohmann::json;

constexpr size_t kPoints = 200;       // of a line
constexpr size_t kRecentRecords = 20; // whose loss by position is averaged
constexpr size_t kMapRows = 40, kSlopeRows = 20, kMostMaps = 6;
constexpr double kLeastTokens = 32;  // of a cell of a heat map

std::filesystem::path metrics_path(const std::filesystem::path& folder) { return folder / "metrics.jsonl"; }

double number_of(const Json& json) { return json.is_null() ? NAN : json.get<double>(); }

void put(StepSeries& series, const Json& record, const char* key) {
  const auto value = record.find(key);
  if (value == record.end()) return;
  series.steps.push_back(record.at("step").get<double>());
  series.values.push_back(number_of(*value));
}

/// The mean of a list that has a value for each rank.
void put_mean(StepSeries& series, const Json& record, const char* key) {
  const auto list = record.find(key);
  if (list == record.end()) return;
  std::vector<double> values;
  for (const Json& value : *list) values.push_back(number_of(value));
  series.steps.push_back(record.at("step").get<double>());
  series.values.push_back(mean(values));
}

std::vector<PositionHistory::Bin> bins_of(const Json& record) {
  const Json& lists = record.at("loss_by_position");
  std::vector<PositionHistory::Bin> bins;
  for (size_t i = 0; i < lists.at("last").size(); ++i) {
    bins.push_back({lists.at("first").at(i).get<double>(), lists.at("last").at(i).get<double>(),
                    lists.at("count").at(i).get<double>(), number_of(lists.at("mean").at(i))});
  }
  return bins;
}

/// The mean of each bin over all records, by count.
PositionCurve curve_of(const std::deque<Json>& records, std::string source) {
  struct Sum {
    double first = 0, loss = 0, count = 0;
  };
  std::map<double, Sum> sums;  // by the last position
  for (const Json& record : records) {
    for (const PositionHistory::Bin& bin : bins_of(record)) {
      if (bin.count == 0) continue;
      Sum& sum = sums[bin.last];
      sum.first = bin.first;
      sum.loss += bin.count * bin.mean;
      sum.count += bin.count;
    }
  }
  PositionCurve curve;
  curve.source = std::move(source);
  for (const auto& [last, sum] : sums) {
    curve.positions.push_back(last + 1);
    curve.contexts.push_back(middle_context(sum.first, last));
    curve.losses.push_back(sum.loss / sum.count);
  }
  return curve;
}

/// Collects the records of a run, line by line.
class RunReader {
 public:
  void add(const Json& record) {
    if (record.contains("eval_loss")) {
      put(run.validation_loss, record, "eval_loss");
      put(run.validation_score, record, "in_context_score");
      evaluation_ = record;
      return;
    }
    put(run.loss, record, "loss");
    put(run.score, record, "in_context_score");
    put(run.tokens_per_second, record, "tokens_per_second");
    put(run.step_ms, record, "step_ms");
    put_mean(run.bubble_percent, record, "bubble_percent");
    run.history.add(record.at("step").get<int64_t>(), bins_of(record));
    run.peak_bytes = record.at("peak_bytes").get<std::vector<double>>();
    run.sent_bytes = record.value("sent_bytes", std::vector<double>{});
    run.steps = std::max(run.steps, record.at("step").get<int64_t>());
    recent_.push_back(record);
    if (recent_.size() > kRecentRecords) recent_.pop_front();
  }
  void finish() {
    if (!evaluation_.is_null()) {
      run.by_position = curve_of({evaluation_}, fmt::format("validation after step {}", evaluation_.at("step").get<int64_t>()));
    } else if (!recent_.empty()) {
      const auto step = [](const Json& record) { return record.at("step").get<int64_t>(); };
      run.by_position = curve_of(recent_, fmt::format("training, steps {} to {}", step(recent_.front()), step(recent_.back())));
    }
  }
  RunMetrics run;

 private:
  Json evaluation_;
  std::deque<Json> recent_;
};

/// Of the stage that trained `step`. Empty when the config is gone, is of another version, or its
/// vocabulary is not known any more.
std::vector<double> predicted_peaks(const std::filesystem::path& folder, int64_t step) {
  try {
    const Config whole = load_config(folder / "config.toml"),
                 config = stage_config(whole, stage_at(whole, step).number);
    if (std::error_code ignored; !std::filesystem::exists(config.data.corpus, ignored)) return {};
    const DryRun run{config, config.gpt(planned_vocabulary(config)), Mask{{0}, config.data.window}};
    const Plan plan = make_plan(run);
    std::vector<double> peaks;
    for (const DryStep& rank : plan.ranks) peaks.push_back(double(rank.peak_bytes));
    return plan.every_rank ? peaks : std::vector<double>{};
  } catch (const Error&) {
    return {};
  }
}

Line line_of(const StepSeries& series, int style) {
  const StepSeries few = thinned(series, kPoints);
  Line line;
  line.x = few.steps;
  line.y = few.values;
  line.style = style;
  line.markers = Markers::none;
  return line;
}

/// Each run's training as a line, its validation as points on a dashed one.
Plot plot_over_steps(const std::vector<RunMetrics>& runs, std::string title, std::string unit,
                     StepSeries RunMetrics::*training, StepSeries RunMetrics::*validation) {
  Plot plot{std::move(title), {.label = "step"}, {.label = std::move(unit)}, {}};
  for (size_t i = 0; i < runs.size(); ++i) {
    Line line = line_of(runs[i].*training, int(i));
    line.label = line.column = validation == nullptr ? runs[i].name : runs[i].name + ", training";
    if (!line.x.empty()) plot.lines.push_back(std::move(line));
    if (validation == nullptr || (runs[i].*validation).steps.empty()) continue;
    Line points = line_of(runs[i].*validation, int(i));
    points.stroke = Stroke::dashed;
    points.markers = Markers::all;
    points.label = points.column = runs[i].name + ", validation";
    plot.lines.insert(plot.lines.begin(), std::move(points));  // on top
  }
  double last = 2;
  for (const RunMetrics& run : runs) last = std::max(last, double(run.steps));
  plot.x.ticks = round_ticks(AxisScale::linear, 0, last);
  std::erase_if(plot.x.ticks, [](double step) { return step != std::round(step); });
  return plot;
}

/// The fit as a curve, at the places where the bins stand in the plot.
Line fit_line(const PositionCurve& curve, const PowerFit& fit, int style) {
  Line line{.x = curve.positions, .stroke = Stroke::dashed, .markers = Markers::none, .style = style};
  for (const double context : curve.contexts) line.y.push_back(fit.at(context));
  return line;
}

std::string fits_text(const std::vector<RunMetrics>& runs) {
  std::string text;
  for (const RunMetrics& run : runs) {
    const PowerFit fit = fit_power_law(run.by_position.contexts, run.by_position.losses);
    text += fmt::format("{}{}: {}", text.empty() ? "" : "; ", run.name, fit.text());
  }
  return text;
}

void add_heat_maps(HtmlPage& page, const std::vector<RunMetrics>& runs, std::string_view prefix) {
  if (runs.size() > kMostMaps) return;
  for (size_t i = 0; i < runs.size(); ++i) {
    if (runs[i].history.empty()) continue;
    const auto add = [&](HeatMap map, const char* name, const char* caption) {
      if (runs.size() > 1) map.title += ": " + runs[i].name;
      page.figure(map, fmt::format("{}{}{}", prefix, name, runs.size() > 1 ? fmt::format("_{}", i + 1) : ""), caption);
    };
    add(runs[i].history.loss_map(kMapRows, kLeastTokens), "history",
        "Of training. A row: neighbouring steps, at most 40 rows; a bin's mean by tokens, empty for fewer than 32. The "
        "colours end at the 2nd and the 90th percentile.");
    add(runs[i].history.slope_map(kSlopeRows, kLeastTokens), "slope",
        "d loss / d ln(position) between the middles of neighbouring bins, from such means in at most 20 rows (the picture of "
        "arXiv:2209.11895). Blue, below 0: the loss still falls with more context there. White: no difference. The colours "
        "end at the 90th percentile of the size.");
  }
}

Plot position_plot(const std::vector<RunMetrics>& runs) {
  Plot plot{"Loss by position in the window",
            {.label = "position in the window, up to", .scale = AxisScale::logarithmic},
            {.label = "nats per token"}, {}};
  double longest = 1;
  for (size_t i = 0; i < runs.size(); ++i) {
    const PositionCurve& curve = runs[i].by_position;
    Line line{.label = fmt::format("{} ({})", runs[i].name, curve.source), .x = curve.positions, .y = curve.losses,
              .style = int(i)};
    line.column = line.label;
    for (const double position : curve.positions) longest = std::max(longest, position);
    plot.lines.push_back(std::move(line));
    const PowerFit fit = fit_power_law(curve.contexts, curve.losses);
    if (fit.fits()) plot.lines.push_back(fit_line(curve, fit, int(i)));
  }
  for (double tick = 1; tick <= longest; tick *= 4) plot.x.ticks.push_back(tick);
  plot.x.text = [](double position) { return fmt::format("{:.0f}", position); };
  return plot;
}

Plot memory_plot(const std::vector<RunMetrics>& runs) {
  Plot plot{"Memory of each rank", {.label = "rank"}, {.label = "MB", .begin = 0}, {}};
  plot.y.text = [](double bytes) { return fmt::format("{:g}", bytes / 1e6); };
  size_t most = 0;
  for (size_t i = 0; i < runs.size(); ++i) {
    const auto add = [&](const std::vector<double>& bytes, const char* what, Stroke stroke, Markers markers) {
      if (bytes.empty()) return;
      Line line{.label = runs[i].name + what, .y = bytes, .stroke = stroke, .markers = markers, .style = int(i)};
      for (size_t rank = 0; rank < bytes.size(); ++rank) line.x.push_back(double(rank));
      line.column = line.label;
      most = std::max(most, bytes.size());
      plot.lines.push_back(std::move(line));
    };
    add(runs[i].peak_bytes, ", measured", Stroke::none, Markers::all);
    add(runs[i].predicted_peak_bytes, ", predicted", Stroke::dashed, Markers::none);
  }
  for (size_t rank = 0; rank < most; rank += 1 + most / 16) plot.x.ticks.push_back(double(rank));
  plot.x.text = [](double rank) { return fmt::format("{:g}", rank); };
  return plot;
}

std::vector<std::vector<std::string>> table_of(const std::vector<RunMetrics>& runs) {
  std::vector<std::vector<std::string>> table{{"run", "steps", "loss", "validation", "in-context score", "tokens/s", "ranks"}};
  const auto last = [](const StepSeries& series) {
    return series.values.empty() ? std::string("-") : fmt::format("{:.4f}", series.values.back());
  };
  for (const RunMetrics& run : runs) {
    const StepSeries speed = thinned(run.tokens_per_second, 1);
    table.push_back({run.name, std::to_string(run.steps), last(run.loss), last(run.validation_loss),
                     last(run.validation_score.values.empty() ? run.score : run.validation_score),
                     speed.values.empty() ? "-" : human_count(speed.values.front()), std::to_string(run.peak_bytes.size())});
  }
  return table;
}

}  // namespace

bool is_run(const std::filesystem::path& folder) {
  std::error_code ignored;
  return std::filesystem::exists(metrics_path(folder), ignored);
}

RunMetrics read_run(const std::filesystem::path& folder) {
  const std::filesystem::path path = metrics_path(folder);
  std::ifstream lines(path);
  RunReader reader;
  int number = 0;
  try {
    for (std::string line; std::getline(lines, line) && !lines.eof();) {  // eof: its newline is not there
      ++number;
      reader.add(Json::parse(line));
    }
    reader.finish();
  } catch (const Json::exception&) {
    throw Error(fmt::format("line {} of {} is not a record of a step", number, path.string()),
                "delete that line, or give another run's folder");
  }
  if (reader.run.steps == 0) {
    throw Error(path.string() + " holds no step", "train the run first: ringlet train CONFIG.toml");
  }
  reader.run.name = std::filesystem::weakly_canonical(folder).filename().string();
  reader.run.predicted_peak_bytes = predicted_peaks(folder, reader.run.steps);
  return std::move(reader.run);
}

void add_runs(HtmlPage& page, const std::vector<RunMetrics>& runs, std::string_view prefix) {
  page.table(table_of(runs));
  const auto add = [&](const Plot& plot, const char* name, const std::string& caption) {
    page.figure(plot, fmt::format("{}{}", prefix, name), caption);
  };
  add(plot_over_steps(runs, "Loss", "nats per token", &RunMetrics::loss, &RunMetrics::validation_loss), "loss",
      "Long runs: means of neighbouring steps, at most 200 points.");
  add(position_plot(runs), "position",
      "Bins double: 1, 2, 3 to 4, 5 to 8, ... Falling: the context helps. Dashed: (alpha / c)^beta + gamma, c the middle of "
      "a bin, least squares, each bin alike. " + fits_text(runs) + ".");
  add_heat_maps(page, runs, prefix);
  add(plot_over_steps(runs, "In-context score", "nats per token", &RunMetrics::score, &RunMetrics::validation_score), "score",
      "Loss around position 500 minus loss around position 50 (arXiv:2209.11895); below 0, the context helps.");
  Plot speed = plot_over_steps(runs, "Tokens per second", "tokens/s", &RunMetrics::tokens_per_second, nullptr);
  speed.y.begin = 0;
  add(speed, "speed", "Of the whole world.");
  add(memory_plot(runs), "memory",
      "Points: high-water mark of each rank's arena. Dashed: predicted by the plan of the run's config. The table: bytes.");
}

StepSeries thinned(const StepSeries& series, size_t points) {
  StepSeries few;
  const size_t count = series.steps.size(), group = (count + points - 1) / points;
  for (size_t first = 0; first < count; first += group) {
    const size_t end = std::min(count, first + group);
    std::vector<double> values;
    for (size_t i = first; i < end; ++i) {
      if (std::isfinite(series.values[i])) values.push_back(series.values[i]);
    }
    few.steps.push_back(series.steps[end - 1]);
    few.values.push_back(mean(values));
  }
  return few;
}

}  // namespace ringlet
