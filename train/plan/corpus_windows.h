#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "data/batch.h"
#include "train/plan/plan.h"

namespace ringlet {

/// A step on the very windows that the run will read, with their documents.
struct CorpusStep {
  std::vector<Window> windows;  // in the global order
  Plan plan;
};

struct CorpusPlan {
  std::string corpus;
  std::vector<CorpusStep> steps;  // the first of the run
};

/// Plans the first steps of a run, as many as read `windows` windows (0: one step): what the trainer sends in them, to the
/// byte, and their work and time. threads_per_rank, cores: as of make_plan.
CorpusPlan plan_windows(const DryRun& run, const Corpus& corpus, int64_t windows, const Rates* rates = nullptr,
                        int threads_per_rank = 1, int cores = 0);

/// The first step, the mean and the worst of all, and beside them the worst case; without a line break at the end.
std::string corpus_text(const DryRun& run, const CorpusPlan& plan, const Plan& worst_case);
nlohmann::ordered_json to_json(const CorpusPlan& plan);

}  // namespace ringlet
