#include "train/commands/study.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "kernels/check.h"
#include "train/commands/train.h"
#include "train/console.h"
#include "train/quantile.h"
#include "train/resume.h"
#include "train/signals.h"
#include "train/study/comparison.h"
#include "train/study/study_page.h"
#include "train/study/study_plan.h"
#include "train/units.h"
#include "train/world.h"

namespace ringlet {
namespace {

LossCurve curve_of(const std::vector<PositionBins::Bin>& bins) {
  LossCurve curve;
  for (const auto& [first, last, loss] : bins) {
    curve.first.push_back(double(first));
    curve.last.push_back(double(last));
    curve.count.push_back(double(loss.count));
    curve.mean.push_back(loss.count < 1 ? NAN : loss.mean);
    curve.standard_error.push_back(loss.standard_error);
  }
  return curve;
}

void put(VariantRun& run, const VariantEvaluation& evaluation) {
  run.all = evaluation.all;
  run.first_block_quarter = evaluation.first_quarter;
  run.last_block_quarter = evaluation.last_quarter;
  run.loss = run.all.mean();
  run.loss_error = run.all.standard_error();
  run.first_quarter = run.first_block_quarter.mean();
  run.last_quarter = run.last_block_quarter.mean();
  run.last_quarter_error = run.last_block_quarter.standard_error();
  if (const auto score = evaluation.bins.in_context_score()) {
    run.in_context_score = score->score();
    run.in_context_error = score->standard_error();
  }
  run.by_position = curve_of(evaluation.bins.by_position());
  run.by_distance = curve_of(evaluation.bins.by_distance());
  run.several_documents = evaluation.bins.distance_differs();
}

/// Without the first step, which meets cold caches.
std::vector<double> later(const StepSeries& series) {
  return {series.values.begin() + (series.values.size() > 1 ? 1 : 0), series.values.end()};
}

void put(VariantRun& run, const RunMetrics& metrics) {
  const auto most = [](const std::vector<double>& ranks) {
    return ranks.empty() ? NAN : *std::ranges::max_element(ranks);
  };
  run.step_ms = median(later(metrics.step_ms));
  run.step_ms_p10 = quantile(later(metrics.step_ms), 0.1);
  run.step_ms_p90 = quantile(later(metrics.step_ms), 0.9);
  run.tokens_per_second = median(later(metrics.tokens_per_second));
  run.bubble_percent = median(later(metrics.bubble_percent));
  run.peak_bytes = most(metrics.peak_bytes);
  run.sent_bytes = most(metrics.sent_bytes);
}

/// Trains the run, or goes on with it, and scores it. An error makes a failed run. Absent: it was
/// asked to stop.
std::optional<VariantRun> make_run(const StudyRequest& request, const PlannedRun& planned,
                                   const EvaluationText& text, Console& console) {
  VariantRun run = planned.facts;
  try {
    const Config config = config_of(request, planned);
    std::error_code ignored;
    const bool begun = std::filesystem::exists(config.run.path(), ignored);
    train({request.config.string(), planned.overrides,
           begun ? ResumeChoice::newest : ResumeChoice::no});
    if (stop_requested()) return {};
    const auto say = [&](const std::string& line) { console.say(line); };
    const Checkpoint checkpoint = checkpoint_of(config.run.path(), say);
    put(run, evaluate_variant(checkpoint, config, Corpus::open(config.data.validation), text));
    if (run.all.token_count() == 0) {
      throw Error(fmt::format("none of the {} validation tokens that are scored is an answer", text.tokens()));
    }
    put(run, read_run(config.run.path()));
    run.steps = double(checkpoint.info().step);
    run.tokens = double(checkpoint.info().tokens);
  } catch (const Error& error) {
    run.status = RunStatus::failed;
    run.reason = error.what();
  }
  return run;
}

void check_any_can_train(const StudyPlan& plan) {
  const auto possible = [](const PlannedRun& run) { return run.facts.status == RunStatus::done; };
  if (std::ranges::any_of(plan.runs, possible)) return;
  const VariantRun& first = plan.runs.front().facts;
  throw Error(fmt::format("none of the {} variants can be trained; {}: {}", plan.runs.size(),
                          first.variant, first.reason),
              "change the config with --set; `ringlet plan` tells what a run needs");
}

/// False: it was asked to stop.
bool make_runs(const StudyRequest& request, const StudyPlan& plan, VariantsFile& file,
               Console& console) {
  for (size_t i = 0; i < plan.runs.size(); ++i) {
    if (stop_requested()) return false;
    const PlannedRun& planned = plan.runs[i];
    const bool settled = file.is_settled(planned.variant.name, planned.seed);
    console.say(fmt::format("[{}/{}] {}, seed {}{}", i + 1, plan.runs.size(), planned.variant.name,
                            planned.seed, settled ? ": done before" : ""));
    if (settled) continue;
    const bool possible = planned.facts.status == RunStatus::done;
    const std::optional<VariantRun> run =
        possible ? make_run(request, planned, plan.text, console) : planned.facts;
    if (!run) return false;
    file.append(*run);
    console.say(run->status == RunStatus::done
                    ? fmt::format("  validation loss {:.4f} +- {:.4f}, last quarter {:.4f}",
                                  run->loss, run->loss_error, run->last_quarter)
                    : fmt::format("  {}: {}", name_of(run->status), run->reason));
    expect_no_rank_left_behind();
  }
  return true;
}

void write_study_files(const StudyResult& study, const std::filesystem::path& folder) {
  write_atomically(folder / "study.csv", to_csv(study.runs));
  write_atomically(folder / "study.json", to_json(study).dump(1) + '\n');
  HtmlPage page(study.title());
  add_variant_study(page, study, "");
  page.write(folder / "report.html");
}

}  // namespace

void study_command(const StudyOptions& options) {
  StudyRequest request{.kind = &study_named(options.name),
                       .config = options.config,
                       .folder = options.folder,
                       .overrides = options.overrides,
                       .steps = options.steps,
                       .seeds = options.seeds,
                       .size = options.size};
  if (!options.tokens.empty()) request.tokens = parse_tokens(options.tokens);
  const StudyPlan plan = plan_study(request);
  std::error_code ignored;
  if (!std::filesystem::exists(variants_path(request.folder), ignored)) check_any_can_train(plan);
  VariantsFile file(request.folder, plan.settings);
  install_signal_handlers();
  Console console;
  const bool finished = make_runs(request, plan, file, console);
  const StudyResult study = read_study(request.folder);
  write_study_files(study, request.folder);
  const auto done = [](const VariantRun& run) { return run.status == RunStatus::done; };
  if (finished && std::ranges::none_of(study.runs, done)) {
    throw Error("no variant could be trained; " + options.folder + "/study.csv has the reasons",
                "change the config with --set, and give another folder");
  }
  fmt::print("{}\n", options.format == OutputFormat::json
                         ? to_json(study).dump()
                         : study.title() + "\n\n" + to_text(study));
  console.say(
      finished ? fmt::format("{}/report.html has the plots, study.csv and study.json the numbers",
                             options.folder)
               : "stopped as asked; the same command goes on where it stopped, within the run that "
                 "it was in");
}

}  // namespace ringlet
