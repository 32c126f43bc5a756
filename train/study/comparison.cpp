#include "train/study/comparison.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <nlohmann/json.hpp>
#include <sstream>

#include "kernels/check.h"
#include "train/quantile.h"

namespace ringlet {
namespace {

std::string setting(const StudySettings& settings, const char* name) {
  const auto found = settings.find(name);
  return found == settings.end() ? "?" : found->second;
}

const BlockedLoss& blocks_of(const VariantRun& run, Measure measure) {
  return measure == Measure::all ? run.all : run.last_block_quarter;
}

double standard_deviation(const std::vector<double>& values) {
  if (values.size() < 2) return NAN;
  const double middle = mean(values);
  double squares = 0;
  for (const double value : values) squares += std::pow(value - middle, 2);
  return std::sqrt(squares / double(values.size() - 1));
}

/// Of curves with the same bins: means by count; errors as of independent runs.
LossCurve mean_curve(const std::vector<VariantRun>& runs, LossCurve VariantRun::*curve) {
  LossCurve result = runs[0].*curve;
  for (size_t bin = 0; bin < result.mean.size(); ++bin) {
    double sum = 0, count = 0;
    for (const VariantRun& run : runs) {
      const LossCurve& own = run.*curve;
      if (bin >= own.mean.size() || own.count[bin] == 0) continue;
      sum += own.count[bin] * own.mean[bin];
      count += own.count[bin];
    }
    result.mean[bin] = sum / count;
  }
  return result;
}

VariantRun mean_run(const std::vector<VariantRun>& runs) {
  VariantRun result = runs[0];
  for (const RunField& field : run_fields()) {
    std::vector<double> values;
    for (const VariantRun& run : runs) values.push_back(run.*field.value);
    result.*field.value = mean(values);
  }
  for (BlockedLoss VariantRun::*blocks :
       {&VariantRun::all, &VariantRun::first_block_quarter, &VariantRun::last_block_quarter}) {
    std::vector<BlockedLoss> all;
    for (const VariantRun& run : runs) all.push_back(run.*blocks);
    result.*blocks = mean_of(all);
  }
  result.loss_error = result.all.standard_error();
  result.last_quarter_error = result.last_block_quarter.standard_error();
  result.by_position = mean_curve(runs, &VariantRun::by_position);
  result.by_distance = mean_curve(runs, &VariantRun::by_distance);
  return result;
}

VariantResult variant_result(const std::string& name, const std::vector<VariantRun>& runs,
                             Measure measure) {
  VariantResult result{.name = name, .runs = {}};
  for (const VariantRun& run : runs) {
    if (run.variant == name && run.status == RunStatus::done) result.runs.push_back(run);
  }
  std::ranges::sort(result.runs, {}, &VariantRun::seed);
  if (result.runs.empty()) return result;
  result.mean = mean_run(result.runs);
  std::vector<double> losses;
  for (const VariantRun& run : result.runs) losses.push_back(blocks_of(run, measure).mean());
  result.seed_deviation = standard_deviation(losses);
  return result;
}

/// The largest difference of a step's loss from that of the reference, of the same seed.
void compare_steps(VariantRun& run, const RunMetrics& own, const RunMetrics& reference) {
  run.step_loss_difference = 0;
  const size_t steps = std::min(own.loss.values.size(), reference.loss.values.size());
  for (size_t i = 0; i < steps; ++i) {
    const double difference = std::abs(own.loss.values[i] - reference.loss.values[i]);
    if (!(difference <= run.step_loss_difference))
      run.step_loss_difference = difference;  // NaN stays
  }
}

int64_t first_seed_of(const StudySettings& settings, const std::filesystem::path& folder) {
  const std::string text = setting(settings, "first_seed");
  int64_t seed = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), seed);
  if (error == std::errc() && end == text.data() + text.size()) return seed;
  throw Error(fmt::format("{} has no first seed", variants_path(folder).string()), "give a study's folder, or a new one");
}

std::optional<RunMetrics> metrics_of(const std::filesystem::path& folder) {
  try {
    return read_run(folder);
  } catch (const Error&) {  // gone or damaged: the study's own numbers are left
    return {};
  }
}

}  // namespace

double VariantDifference::error() const {
  return std::isfinite(seed_error) ? std::hypot(evaluation_error, seed_error) : evaluation_error;
}

bool VariantDifference::is_lost_in_error() const { return value == 0 || !(std::abs(value) >= 2 * error()); }

std::string StudyResult::title() const {
  return fmt::format("Study {}: {} ({})", kind->name, kind->question, setting(settings, "model"));
}

const VariantResult* StudyResult::find(const std::string& name) const {
  const auto found = std::ranges::find(variants, name, &VariantResult::name);
  return found == variants.end() ? nullptr : &*found;
}

StudyResult make_result(RunsOfStudy read) {
  StudyResult study{.kind = &study_named(setting(read.settings, "study")),
                    .settings = std::move(read.settings),
                    .variants = {},
                    .runs = std::move(read.runs),
                    .reference = {},
                    .metrics = {}};
  study.reference = setting(study.settings, "reference");
  std::istringstream lines(setting(study.settings, "variants"));
  for (std::string line; std::getline(lines, line);) {
    study.variants.push_back(
        variant_result(line.substr(0, line.find(':')), study.runs, study.kind->measure));
  }
  return study;
}

StudyResult read_study(const std::filesystem::path& folder) {
  RunsOfStudy read = read_variants(folder);
  if (read.settings.empty())
    throw Error(folder.string() + " holds a study that never began", "start it again");
  const int64_t first_seed = first_seed_of(read.settings, folder);
  const std::string reference = setting(read.settings, "reference");
  std::vector<RunMetrics> metrics;
  for (VariantRun& run : read.runs) {
    if (run.status != RunStatus::done) continue;
    const auto path = [&](const std::string& variant) {
      return folder / "runs" / VariantRun::folder_name(variant, run.seed, first_seed);
    };
    std::optional<RunMetrics> own = metrics_of(path(run.variant));
    if (!own) continue;
    // Only where each step of all variants has the same tokens can their losses be compared.
    const bool same_steps = setting(read.settings, "study") == "ring";
    if (const auto other = same_steps ? metrics_of(path(reference)) : std::nullopt)
      compare_steps(run, *own, *other);
    if (run.seed == first_seed) metrics.push_back(std::move(*own));
  }
  StudyResult study = make_result(std::move(read));
  study.metrics = std::move(metrics);
  return study;
}

VariantDifference difference(const VariantResult& above, const VariantResult& below,
                             Measure measure) {
  const LossDifference of_text =
      difference(blocks_of(*above.mean, measure), blocks_of(*below.mean, measure));
  std::vector<double> by_seed;
  for (const VariantRun& run : above.runs) {
    const auto other = std::ranges::find(below.runs, run.seed, &VariantRun::seed);
    if (other == below.runs.end()) continue;
    by_seed.push_back(blocks_of(run, measure).mean() - blocks_of(*other, measure).mean());
  }
  VariantDifference result{of_text.value, of_text.standard_error, NAN, int64_t(by_seed.size())};
  result.seed_error = standard_deviation(by_seed) / std::sqrt(double(by_seed.size()));
  return result;
}

}  // namespace ringlet
