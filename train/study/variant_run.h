#pragma once

#include <cmath>
#include <nlohmann/json_fwd.hpp>
#include <span>
#include <string>
#include <vector>

#include "train/settings_log.h"
#include "train/study/blocked_loss.h"

namespace ringlet {

enum class RunStatus : uint8_t { done, impossible, failed };
const char* name_of(RunStatus status);

/// Losses by position or distance, as train/position_bins.h has them.
struct LossCurve {
  std::vector<double> first, last, count, mean, standard_error;  // NaN: not known
};

/// A variant trained with one seed, and what came of it. NaN: not known.
struct VariantRun {
  std::string variant;
  int64_t seed = 0;
  RunStatus status = RunStatus::done;
  std::string reason;        // of a run without a result, one line
  std::string layout, mask;  // as the config names them

  double seq_len = NAN, ranks = NAN, rope_base = NAN;
  double steps = NAN, tokens = NAN;  // trained
  double loss = NAN, loss_error = NAN, first_quarter = NAN, last_quarter = NAN,
         last_quarter_error = NAN;  // validation
  double in_context_score = NAN, in_context_error = NAN;
  double step_ms = NAN, step_ms_p10 = NAN, step_ms_p90 = NAN;  // of all steps but the first
  double tokens_per_second = NAN, bubble_percent = NAN;        // medians
  double peak_bytes = NAN,
         sent_bytes = NAN;            // of the fullest arena; of the rank that sends most in a step
  double step_loss_difference = NAN;  // largest, over the steps, from the reference's training

  BlockedLoss all, first_block_quarter, last_block_quarter;  // validation, by block
  LossCurve by_position, by_distance;
  bool several_documents = false;  // by_distance is another list than by_position

  /// The folder of the run below DIR/runs.
  static std::string folder_name(const std::string& variant, int64_t seed, int64_t first_seed);
};

/// The numbers of a run by name, in the order of the columns of study.csv.
struct RunField {
  const char* name;
  double VariantRun::*value;
};
std::span<const RunField> run_fields();

/// Every key always; what is not known is null.
nlohmann::ordered_json to_json(const VariantRun& run);

/// study.csv: a heading and a line for each run.
std::string to_csv(std::span<const VariantRun> runs);

/// A study's folder as it was read: settings, and runs in the order in which they ended.
struct RunsOfStudy {
  StudySettings settings;
  std::vector<VariantRun> runs;
};

/// The file that makes a folder a study's: variants.jsonl.
std::filesystem::path variants_path(const std::filesystem::path& folder);

/// Throws Error: no such folder, or which line is damaged.
RunsOfStudy read_variants(const std::filesystem::path& folder);

/// variants.jsonl under write (train/settings_log.h).
class VariantsFile {
 public:
  VariantsFile(const std::filesystem::path& folder, const StudySettings& settings);
  /// Is it done, or impossible? What failed is tried again.
  bool is_settled(const std::string& variant, int64_t seed) const;
  void append(const VariantRun& run);

 private:
  std::vector<VariantRun> runs_;
  SettingsLog log_;
};

}  // namespace ringlet
