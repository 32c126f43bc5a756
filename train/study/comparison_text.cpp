#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "train/console.h"
#include "train/scale/study.h"
#include "train/study/comparison.h"

namespace ringlet {
namespace {

using Json = nlohmann::ordered_json;

std::string fixed(double value, int digits) {
  return std::isfinite(value) ? fmt::format("{:.{}f}", value, digits) : "-";
}

/// "1.9301 +- 0.0120"; without the error where it is not known.
std::string with_error(double value, double error) {
  return fixed(value, 4) + (std::isfinite(error) ? fmt::format(" +- {:.4f}", error) : "");
}

std::string nats(const VariantDifference& difference) {
  const std::string error = std::isfinite(difference.error())
                                ? fmt::format(" +- {:.4f}", difference.error())
                                : " (error not known)";
  return fmt::format("{:.4f}{} nats per token", std::abs(difference.value), error);
}

const char* words_of(Measure measure) {
  return measure == Measure::all ? "all tokens" : "last quarter of the window";
}

/// The variants that have numbers, the lowest loss first.
std::vector<const VariantResult*> ranked(const StudyResult& study, Measure measure) {
  std::vector<const VariantResult*> done;
  for (const VariantResult& variant : study.variants) {
    if (variant.mean) done.push_back(&variant);
  }
  std::ranges::stable_sort(done, {}, [&](const VariantResult* variant) {
    return measure == Measure::all ? variant->mean->all.mean()
                                   : variant->mean->last_block_quarter.mean();
  });
  return done;
}

/// Which is best in one measure, beside the reference, or the next where the reference is it.
std::string best_text(const StudyResult& study, Measure measure) {
  const std::vector<const VariantResult*> order = ranked(study, measure);
  const VariantResult& best = *order[0];
  const VariantResult* const reference = study.find(study.reference);
  const bool comparable = reference != nullptr && reference->mean && reference != &best;
  const VariantResult& other = comparable ? *reference : *order[1];
  const VariantDifference by = difference(other, best, measure);
  std::string text = by.is_lost_in_error()
                         ? fmt::format("{}: {} and {} cannot be told apart: {}", words_of(measure),
                                       best.name, other.name, nats(by))
                         : fmt::format("{}: {} beats {} by {}", words_of(measure), best.name,
                                       other.name, nats(by));
  std::string near;
  for (const VariantResult* variant : order) {
    if (variant == &best || variant == &other) continue;
    if (difference(*variant, best, measure).is_lost_in_error())
      near += (near.empty() ? "" : ", ") + variant->name;
  }
  if (!near.empty()) text += fmt::format(" (within two errors of the best: {})", near);
  return text;
}

std::string ring_text(const StudyResult& study) {
  const VariantResult* farthest = nullptr;
  double largest_evaluation = 0;
  std::string same;
  const VariantResult* const reference = study.find(study.reference);
  for (const VariantResult& variant : study.variants) {
    if (!variant.mean || &variant == reference) continue;
    const double difference = variant.mean->step_loss_difference;
    if (difference == 0) same += (same.empty() ? "" : ", ") + variant.name;
    if (std::isfinite(difference) &&
        (!farthest || difference > farthest->mean->step_loss_difference))
      farthest = &variant;
    if (!reference || !reference->mean) continue;
    largest_evaluation =
        std::max(largest_evaluation, std::abs(variant.mean->loss - reference->mean->loss));
  }
  if (!farthest) return fmt::format("nothing to compare with {}", study.reference);
  std::string text = fmt::format(
      "the losses of {:.0f} steps differ from those of {} by at most {:.1e} nats per token ({}), "
      "those of the validation text "
      "after them by at most {:.1e}",
      farthest->mean->steps, study.reference, farthest->mean->step_loss_difference, farthest->name,
      largest_evaluation);
  if (!same.empty()) text += "; equal in every bit: " + same;
  return text;
}

std::string seeds_text(const StudyResult& study) {
  size_t fewest = SIZE_MAX, most = 0;
  for (const VariantResult& variant : study.variants) {
    if (!variant.mean) continue;
    fewest = std::min(fewest, variant.runs.size());
    most = std::max(most, variant.runs.size());
  }
  if (most == 1) return "1 seed: the error is that of the text alone";
  return fewest == most ? fmt::format("{} seeds", most)
                        : fmt::format("{} to {} seeds", fewest, most);
}

/// Do the variants differ in it?
template <class Value>
bool varies(const StudyResult& study, Value VariantRun::*value) {
  const VariantRun* first = nullptr;
  for (const VariantResult& variant : study.variants) {
    if (!variant.mean) continue;
    if (first == nullptr) first = &*variant.mean;
    if ((*variant.mean).*value != first->*value) return true;
  }
  return false;
}

using Table = std::vector<std::vector<std::string>>;

/// A column for each setting in which the variants differ.
void add_settings(const StudyResult& study, const VariantRun* run, std::vector<std::string>& row) {
  const auto add = [&](const char* heading, bool shown, const std::string& text) {
    if (shown) row.push_back(run == nullptr ? heading : text);
  };
  static const VariantRun kNone;
  const VariantRun& own = run == nullptr ? kNone : *run;
  add("T", varies(study, &VariantRun::seq_len), length_text(own.seq_len));
  add("ranks", varies(study, &VariantRun::ranks), fixed(own.ranks, 0));
  add("rope base", varies(study, &VariantRun::rope_base), fmt::format("{:.3g}", own.rope_base));
}

std::string loss_table(const StudyResult& study) {
  const Measure measure = study.kind->measure;
  const bool seeds =
      std::ranges::any_of(study.variants, [](const VariantResult& v) { return v.runs.size() > 1; });
  const bool steps = std::ranges::any_of(study.variants, [](const VariantResult& variant) {
    return variant.mean && std::isfinite(variant.mean->step_loss_difference);
  });
  Table table{{"variant"}};
  add_settings(study, nullptr, table[0]);
  for (const char* heading : {"steps", "validation loss", "first 1/4", "last 1/4"})
    table[0].push_back(heading);
  table[0].push_back((measure == Measure::all ? "loss - " : "last 1/4 - ") + study.reference);
  if (seeds) table[0].push_back("seeds' deviation");
  if (steps) table[0].push_back("a step's loss off by");
  const VariantResult* const reference = study.find(study.reference);
  for (const VariantResult& variant : study.variants) {
    if (!variant.mean) continue;
    const VariantRun& run = *variant.mean;
    std::vector<std::string>& row = table.emplace_back(std::vector{variant.name});
    add_settings(study, &run, row);
    row.insert(row.end(),
               {fixed(run.steps, 0), with_error(run.loss, run.loss_error),
                fixed(run.first_quarter, 4), with_error(run.last_quarter, run.last_quarter_error)});
    VariantDifference above;
    if (reference && reference->mean && reference != &variant)
      above = difference(variant, *reference, measure);
    row.push_back((above.value > 0 ? "+" : "") + with_error(above.value, above.error()));
    if (seeds) row.push_back(fixed(variant.seed_deviation, 4));
    if (steps) row.push_back(fmt::format("{:.1e}", run.step_loss_difference));
  }
  return format_table(table);
}

std::string cost_table(const StudyResult& study) {
  Table table{{"variant", "tokens", "step ms", "p10-p90", "tokens/s", "bubble %", "peak a rank",
               "sent a step"}};
  for (const VariantResult& variant : study.variants) {
    if (!variant.mean) continue;
    const VariantRun& run = *variant.mean;
    table.push_back(
        {variant.name, std::isfinite(run.tokens) ? human_count(run.tokens) : "-",
         fixed(run.step_ms, 1), fixed(run.step_ms_p10, 1) + "-" + fixed(run.step_ms_p90, 1),
         std::isfinite(run.tokens_per_second) ? human_count(run.tokens_per_second) : "-",
         fixed(run.bubble_percent, 1),
         std::isfinite(run.peak_bytes) ? human_bytes(run.peak_bytes) : "-",
         std::isfinite(run.sent_bytes) ? human_bytes(run.sent_bytes) : "-"});
  }
  return format_table(table);
}

Json finite_json(double value) { return std::isfinite(value) ? Json(value) : Json(); }

}  // namespace

std::string result_text(const StudyResult& study) {
  const std::vector<const VariantResult*> done = ranked(study, study.kind->measure);
  if (done.size() < 2) {
    return done.empty() ? "no variant is trained yet"
                        : fmt::format("only {} is trained: nothing to compare", done[0]->name);
  }
  const std::string tokens = fmt::format("{:.0f} validation tokens, {}",
                                         done[0]->mean->all.token_count(), seeds_text(study));
  if (std::string_view(study.kind->name) == "ring")
    return fmt::format("{} ({})", ring_text(study), tokens);
  const Measure other = study.kind->measure == Measure::all ? Measure::last_quarter : Measure::all;
  return fmt::format("{}; {} ({})", best_text(study, study.kind->measure), best_text(study, other),
                     tokens);
}

std::string to_text(const StudyResult& study) {
  return fmt::format("result: {}\n\n{}", result_text(study), tables_text(study));
}

std::string tables_text(const StudyResult& study) {
  std::string text = loss_table(study) + '\n' + cost_table(study);
  for (const VariantRun& run : study.runs) {
    if (run.status == RunStatus::done) continue;
    text += fmt::format("{} (seed {}): {}: {}\n", run.variant, run.seed, name_of(run.status),
                        run.reason);
  }
  text +=
      "\nLosses: nats per token of the same validation tokens, cut into windows of each variant's "
      "T; quarters: of these\n"
      "windows. +-: standard error over blocks of the text as long as the longest window; of "
      "differences, block by block, so\n"
      "that what is hard for both does not count; with several seeds together with that over the "
      "seeds. Times: medians of\n"
      "the steps but the first; sent: by the rank that sends most; bubble: share of a step in "
      "which a rank waits.\n";
  return text;
}

Json to_json(const StudyResult& study) {
  Json json{
      {"study", study.kind->name}, {"result", result_text(study)}, {"settings", study.settings}};
  json["comparisons"] = Json::array();
  const VariantResult* const reference = study.find(study.reference);
  for (const VariantResult& variant : study.variants) {
    if (!variant.mean || !reference || !reference->mean || reference == &variant) continue;
    for (const Measure measure : {Measure::all, Measure::last_quarter}) {
      const VariantDifference above = difference(variant, *reference, measure);
      json["comparisons"].push_back({{"variant", variant.name},
                                     {"reference", reference->name},
                                     {"measure", measure == Measure::all ? "all" : "last_quarter"},
                                     {"difference", finite_json(above.value)},
                                     {"standard_error", finite_json(above.error())},
                                     {"evaluation_error", finite_json(above.evaluation_error)},
                                     {"seed_error", finite_json(above.seed_error)},
                                     {"seeds", above.seeds}});
    }
  }
  json["runs"] = Json::array();
  for (const VariantRun& run : study.runs) json["runs"].push_back(to_json(run));
  return json;
}

}  // namespace ringlet
