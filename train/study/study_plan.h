#pragma once

#include "data/corpus.h"
#include "train/study/evaluate.h"
#include "train/study/kinds.h"
#include "train/study/variant_run.h"

namespace ringlet {

/// What a study is asked to do.
struct StudyRequest {
  const StudyKind* kind;
  std::filesystem::path config, folder;
  std::vector<std::string> overrides;
  int64_t steps = 0, tokens = 0;  // of each variant; 0 and 0: by the config's train.steps
  int64_t seeds = 1;
  StudySize size = StudySize::small;
};

/// One run to be made: `ringlet train` with these overrides, or why it cannot be.
struct PlannedRun {
  Variant variant;
  int64_t seed = 0;
  std::vector<std::string> overrides;
  VariantRun facts;  // settings; status impossible with its reason, or done
};

/// A study before it runs.
struct StudyPlan {
  std::vector<PlannedRun> runs;  // seed by seed
  EvaluationText text;
  StudySettings settings;
};

/// Throws Error: the config cannot be, a corpus is missing or does not suit the study.
StudyPlan plan_study(const StudyRequest& request);

/// The config of a run, as it trains. Throws Error.
Config config_of(const StudyRequest& request, const PlannedRun& run);

}  // namespace ringlet
