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
#include "train/quantile.h"

namespace ringlet {
namespace {

using Json = nlohmann::json;

constexpr size_t kPoints = 200;       // of a line
constexpr size_t kRecentRecords = 20; // whose loss by position is averaged

std::filesystem::path metrics_path(const std::filesystem::path& folder) { return folder / "metrics.jsonl"; }

double number_of(const Json& json) { return json.is_null() ? NAN : json.get<double>(); }

void put(StepSeries& series, const Json& record, const char* key) {
  const auto value = record.find(key);
  if (value == record.end()) return;
  series.steps.push_back(record.at("step").get<double>());
  series.values.push_back(number_of(*value));
}

/// The mean of each bin over all records, by count.
PositionCurve curve_of(const std::deque<Json>& records, std::string source) {
  struct Sum {
    double loss = 0, count = 0;
  };
  std::map<double, Sum> bins;  // by the last position
  for (const Json& record : records) {
    const Json& lists = record.at("loss_by_position");
    for (size_t i = 0; i < lists.at("last").size(); ++i) {
      const double count = lists.at("count").at(i), loss = number_of(lists.at("mean").at(i));
      if (count == 0) continue;
      Sum& bin = bins[lists.at("last").at(i).get<double>()];
      bin.loss += count * loss;
      bin.count += count;
    }
  }
  PositionCurve curve{{}, {}, std::move(source)};
  for (const auto& [last, sum] : bins) {
    curve.positions.push_back(last + 1);
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
    run.peak_bytes = record.at("peak_bytes").get<std::vector<double>>();
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

/// Empty when the config is gone, is of another version, or its vocabulary is not known any more.
std::vector<double> predicted_peaks(const std::filesystem::path& folder) {
  try {
    const Config config = load_config(folder / "config.toml");
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
  reader.run.predicted_peak_bytes = predicted_peaks(folder);
  return std::move(reader.run);
}

void add_runs(HtmlPage& page, const std::vector<RunMetrics>& runs) {
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
  page.table(table);
  page.figure(plot_over_steps(runs, "Loss", "nats per token", &RunMetrics::loss, &RunMetrics::validation_loss), "loss",
              "Long runs: means of neighbouring steps, at most 200 points.");
  page.figure(position_plot(runs), "position", "Bins double: 1, 2, 3 to 4, 5 to 8, ... Falling: the context helps.");
  page.figure(plot_over_steps(runs, "In-context score", "nats per token", &RunMetrics::score, &RunMetrics::validation_score),
              "score", "Loss around position 500 minus loss around position 50 (arXiv:2209.11895); below 0, the context helps.");
  Plot speed = plot_over_steps(runs, "Tokens per second", "tokens/s", &RunMetrics::tokens_per_second, nullptr);
  speed.y.begin = 0;
  page.figure(speed, "speed", "Of the whole world.");
  page.figure(memory_plot(runs), "memory",
              "Points: high-water mark of each rank's arena. Dashed: predicted by the plan of the run's config. The table: "
              "bytes.");
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
