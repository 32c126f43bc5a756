// Where communication stops hiding: the bubble of training steps over emulated links, against the tokens of a rank,
// beside what plan foretells.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <fstream>

#include "tests/support/training_case.h"
#include "train/machine.h"
#include "train/plan/calibration.h"
#include "train/plan/plan.h"
#include "train/report/plot.h"
#include "train/units.h"
#include "train/world.h"

namespace ringlet::bench {
namespace {

constexpr double kBar = 5;       // percent of a step
constexpr double kAllowed = 0.2; // of the crossing

struct Options {
  std::vector<std::string> links{"100MB/s,50us", "200MB/s,50us", "400MB/s,50us"};
  std::vector<int64_t> lengths{1024, 2048, 3072, 4096, 6144, 8192, 12288, 16384};
  int64_t steps = 6;
  std::string markdown, svg;
};

struct Point {
  int64_t length = 0;
  double measured = 0, predicted = 0;      // bubble, percent
  double measured_ms = 0, predicted_ms = 0;  // step
};

struct Sweep {
  std::string link;
  std::vector<Point> points;
};

Config config_of(const std::string& corpus, const std::string& link, int64_t length, int64_t steps) {
  const std::vector<std::string> settings{
      "data.corpus=" + corpus, "data.mask=causal",      "run.name=overlap",     "model.layers=2",
      "model.width=128",       "model.heads=4",         "train.warmup_steps=0", "run.ranks=2",
      "run.threads_per_rank=1", "checkpoint.every=0",   "run.verify=off",       "run.link=" + link,
      "run.seq_len=" + std::to_string(length), "train.steps=" + std::to_string(steps)};
  return parse_config("", "overlap", settings);
}

double median(std::vector<double> values) {
  std::ranges::sort(values);
  return values[values.size() / 2];
}

/// Medians of the steps after the first. A step counts without what its ranks waited for each other: two cores are never
/// equally fast, and a rank that is late looks like a link that is slow.
void measure(const Config& config, Point& point) {
  const Corpus corpus = Corpus::open(config.data.corpus);
  const WindowReader windows(corpus, config.run.seq_len);
  const TrainingRun run{config,  config.gpt(corpus.vocabulary()), windows, nullptr, nullptr, nullptr, "", "", "",
                        nullptr, nullptr,                         nullptr};
  const SequenceLayout layout = config.run.sequence_layout();
  std::vector<std::vector<double>> waits_ms(size_t(config.run.ranks), std::vector<double>(size_t(config.train.steps)));
  std::vector<MetricsRecord> records;
  run_world(config, [&](RankContext context, Comm& world) {
    Trainer trainer(run, context, world, layout);
    auto before = context.trace.link_wait();
    for (double& wait_ms : waits_ms[size_t(world.rank())]) {
      const MetricsRecord record = trainer.train_step();
      if (world.rank() == 0) records.push_back(record);
      wait_ms = 1e-6 * double((context.trace.link_wait() - before).count());
      before = context.trace.link_wait();
    }
  });
  std::vector<double> bubbles, steps_ms;
  for (size_t step = 1; step < records.size(); ++step) {
    for (size_t rank = 0; rank < waits_ms.size(); ++rank) {
      const double wait_ms = waits_ms[rank][step];
      steps_ms.push_back(records[step].step_ms - records[step].exposed_ms[rank] + wait_ms);
      bubbles.push_back(100 * wait_ms / steps_ms.back());
    }
  }
  point.measured = median(bubbles);
  point.measured_ms = median(steps_ms);
}

Sweep sweep(const Options& options, const std::string& corpus, const std::string& link) {
  Sweep result{link, {}};
  const Config first = config_of(corpus, link, options.lengths.front(), options.steps);
  const GptConfig gpt = first.gpt(Corpus::open(corpus).vocabulary());
  // In the same minute as the steps: machines have fast and slow ones.
  Rates rates = calibrate(first, gpt, Devices(DeviceKind::cpu));
  rates.link = parse_link(link);
  for (const int64_t length : options.lengths) {
    const Config config = config_of(corpus, link, length, options.steps);
    Point point{.length = length};
    measure(config, point);
    const Plan plan = make_plan({config, gpt, Mask{}}, &rates, 1, usable_cores());
    for (const RankTime& rank : plan.times) {  // as measured: without what ranks wait for each other
      const double step_seconds = rank.end_seconds - rank.late_seconds;
      point.predicted += 100 * (rank.exposed_seconds - rank.late_seconds) / step_seconds / double(plan.times.size());
      point.predicted_ms += 1e3 * step_seconds / double(plan.times.size());
    }
    fmt::print(stderr, "{:>14}  {:>5} tokens a rank: bubble {:5.1f} % measured, {:5.1f} % predicted; step {:.0f} ms, {:.0f} ms\n",
               link, length / 2, point.measured, point.predicted, point.measured_ms, point.predicted_ms);
    result.points.push_back(point);
  }
  return result;
}

/// Tokens of a rank at which the bubble falls below the bar for good, on straight lines between the logarithms; 0: nowhere.
double crossing(const Sweep& sweep, double Point::* bubble) {
  for (size_t i = sweep.points.size() - 1; i > 0; --i) {
    const Point &below = sweep.points[i], &above = sweep.points[i - 1];
    if (below.*bubble >= kBar) return 0;
    if (above.*bubble < kBar) continue;
    const double share = std::log(above.*bubble / kBar) / std::log(above.*bubble / std::max(below.*bubble, 1e-3));
    return 0.5 * double(above.length) * std::pow(double(below.length) / double(above.length), share);
  }
  return 0;
}

std::string markdown_of(const std::vector<Sweep>& sweeps, const std::string& command) {
  std::string text = fmt::format(
      "# Where a slow link stops hiding\n\nBubble: the share of a step that a rank waits for the link, without what "
      "the ranks wait for each other\n(two cores are never equally fast): median of the ranks and of the steps after "
      "the first. 2 layers,\nwidth 128, 4 heads, 2 zigzag ranks of one thread on two cores, links **emulated** between "
      "them.\nPredicted by `plan`, calibrated right before each link. {}.\n\n    {}\n\n"
      "| link | tokens a rank | bubble measured | predicted | step measured | predicted |\n"
      "|---|---:|---:|---:|---:|---:|\n", device_name(1), command);
  for (const Sweep& sweep : sweeps) {
    for (const Point& point : sweep.points) {
      text += fmt::format("| {} | {} | {:.1f} % | {:.1f} % | {:.0f} ms | {:.0f} ms |\n", sweep.link, point.length / 2,
                          point.measured, point.predicted, point.measured_ms, point.predicted_ms);
    }
  }
  text += fmt::format("\n| link | below {} % from, measured | predicted | predicted / measured |\n|---|---:|---:|---:|\n", kBar);
  for (const Sweep& sweep : sweeps) {
    const double measured = crossing(sweep, &Point::measured), predicted = crossing(sweep, &Point::predicted);
    text += fmt::format("| {} | {:.0f} tokens a rank | {:.0f} | {:.2f} |\n", sweep.link, measured, predicted,
                        measured > 0 ? predicted / measured : 0);
  }
  return text;
}

std::string picture_of(const std::vector<Sweep>& sweeps) {
  Plot plot{.title = "Waiting for an emulated link, 2 zigzag ranks",
            .x = {.label = "tokens a rank", .scale = AxisScale::logarithmic},
            .y = {.label = "bubble, % of a step; points measured, lines predicted", .scale = AxisScale::logarithmic}};
  plot.x.text = plot.y.text = [](double value) { return fmt::format("{:g}", value); };
  Line bar{.label = fmt::format("{:g} %", kBar), .stroke = Stroke::dashed, .markers = Markers::none, .style = 3};
  for (size_t i = 0; i < sweeps.size(); ++i) {
    Line measured{.label = sweeps[i].link, .stroke = Stroke::none, .style = int(i)};
    Line predicted{.stroke = Stroke::solid, .markers = Markers::none, .style = int(i)};
    for (const Point& point : sweeps[i].points) {
      for (Line* line : {&measured, &predicted}) line->x.push_back(double(point.length) / 2);
      measured.y.push_back(point.measured);
      predicted.y.push_back(point.predicted);
    }
    plot.x.ticks = bar.x = measured.x;
    plot.lines.push_back(std::move(measured));
    plot.lines.push_back(std::move(predicted));
  }
  bar.y.assign(bar.x.size(), kBar);
  plot.y.ticks = {1, 2, 5, 10, 20, 50, 100};
  plot.lines.push_back(std::move(bar));
  return to_svg(plot);
}

bool holds(const std::vector<Sweep>& sweeps) {
  return std::ranges::all_of(sweeps, [](const Sweep& sweep) {
    const double measured = crossing(sweep, &Point::measured), predicted = crossing(sweep, &Point::predicted);
    return measured > 0 && std::abs(predicted / measured - 1) <= kAllowed;
  });
}

int run(const Options& options, const std::string& command) {
  const test::TemporaryFolder folder;
  std::string text;
  for (int64_t i = 0; i < 4 * options.lengths.back() + 1; ++i) text += char('a' + (i * i + 7 * i) % 23);
  const std::string corpus = test::make_corpus_of(folder, "letters", {text});
  std::vector<Sweep> sweeps;
  for (const std::string& link : options.links) sweeps.push_back(sweep(options, corpus, link));
  const std::string report = markdown_of(sweeps, command);
  fmt::print("{}\nThe predicted crossing is within {:.0f} % of the measured one: {}\n", report, 100 * kAllowed,
             holds(sweeps) ? "yes" : "NO");
  if (!options.markdown.empty()) std::ofstream(options.markdown) << report;
  if (!options.svg.empty()) std::ofstream(options.svg) << picture_of(sweeps);
  return holds(sweeps) ? 0 : 1;
}

}  // namespace
}  // namespace ringlet::bench

int main(int argument_count, char** arguments) {
  ringlet::bench::Options options;
  CLI::App app("Measures where emulated links stop hiding behind compute, beside plan's prediction.", "overlap");
  app.add_option("--link", options.links, "links to emulate, slowest first")->delimiter(';');
  app.add_option("--lengths", options.lengths, "tokens of a window, ascending")->delimiter(',');
  app.add_option("--steps", options.steps, "of which the first is left out")->check(CLI::Range(2, 1000));
  app.add_option("--markdown", options.markdown, "file for the tables");
  app.add_option("--svg", options.svg, "file for the picture");
  CLI11_PARSE(app, argument_count, arguments);
  std::string command;
  for (int i = 0; i < argument_count; ++i) command += (i == 0 ? "" : " ") + std::string(arguments[i]);
  try {
    return ringlet::bench::run(options, command);
  } catch (const ringlet::Error& error) {
    fmt::print(stderr, "overlap: {}\n  {}\n", error.what(), error.advice);
    return 1;
  }
}
