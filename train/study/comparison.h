#pragma once

#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "train/report/run_report.h"
#include "train/study/kinds.h"
#include "train/study/variant_run.h"

namespace ringlet {

/// A variant over its seeds.
struct VariantResult {
  std::string name;
  std::vector<VariantRun> runs;  // done, ascending seeds
  std::optional<VariantRun>
      mean{};  // absent: none is done. Numbers: means of the runs; blocks: of the mean model
  double seed_deviation =
      NAN;  // of the runs' losses in the study's measure; NaN: fewer than two runs
};

/// How much one variant's loss is above another's.
struct VariantDifference {
  double value = NAN;
  double evaluation_error = NAN;  // of the text: over its blocks
  double seed_error =
      NAN;  // of the training: over seeds that both have, paired; NaN: fewer than two
  int64_t seeds = 0;
  double error() const;  // both together
  /// Too small for its error, or the error is not known.
  bool is_lost_in_error() const;
};

/// A study worked out.
struct StudyResult {
  const StudyKind* kind;
  StudySettings settings;
  std::vector<VariantResult> variants;  // in the study's order
  std::vector<VariantRun> runs;         // all of them, as they stand in the file
  std::string reference;                // name of the variant that others are compared with
  std::vector<RunMetrics>
      metrics;  // of the first seed of each variant, as far as their folders are there
  std::string title() const;
  const VariantResult* find(const std::string& name) const;
};

/// Works out what stands in a study's folder. Throws Error.
StudyResult read_study(const std::filesystem::path& folder);

/// The same of runs at hand.
StudyResult make_result(RunsOfStudy study);

/// above's loss minus below's. Both have runs.
VariantDifference difference(const VariantResult& above, const VariantResult& below,
                             Measure measure);

/// What the study found, with its error, in a sentence or two.
std::string result_text(const StudyResult& study);

/// For people: tables of at most 120 columns, what has no numbers and why, the conventions.
std::string tables_text(const StudyResult& study);

/// The result, and the tables.
std::string to_text(const StudyResult& study);

/// study.json.
nlohmann::ordered_json to_json(const StudyResult& study);

}  // namespace ringlet
