#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "train/config.h"

namespace ringlet {

/// small: minutes on two cores with configs/quickstart.toml. large: longer windows, four times the
/// tokens.
enum class StudySize : uint8_t { small, large };

/// Which tokens of the validation text a study is decided by.
enum class Measure : uint8_t { all, last_quarter };

/// One run of a study: the config with these settings.
struct Variant {
  std::string name;                    // of its run's folder
  std::vector<std::string> overrides;  // "key=value"
};

struct Variants {
  std::vector<Variant> list;
  size_t reference = 0;  // the one that others are compared with
};

/// A question that a bundle of runs answers.
struct StudyKind {
  const char* name;
  const char* question;
  const char* varies;  // the variants, and what to mind in reading the result; lines of help
  const char* example;
  Measure measure;
  int64_t step_divisor;  // its variants train train.steps / step_divisor steps
  /// base: the config at the study's length and number of steps.
  Variants (*variants)(const Config& base, StudySize size);
};

std::span<const StudyKind> study_kinds();

/// Throws UsageError that lists the known ones.
const StudyKind& study_named(std::string_view name);

/// Lengths of the study of contexts, ascending, all of them over the same tokens a step.
std::vector<int64_t> context_lengths(int64_t seq_len, StudySize size);

}  // namespace ringlet
