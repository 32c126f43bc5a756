#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "train/commands/output.h"
#include "train/study/kinds.h"

namespace ringlet {

struct StudyOptions {
  std::string name, config;
  std::vector<std::string> overrides;
  int64_t steps = 0;  // of each variant; 0 and no tokens: train.steps, or the study's share of them
  std::string tokens;  // of each variant, as in 2M
  int64_t seeds = 1;
  StudySize size = StudySize::small;
  std::string folder;
  OutputFormat format = OutputFormat::text;
};

/// Trains and scores the variants of a study into a folder, which it can go on with, also within a
/// run that was cut off, and prints what it found. Throws Error when no variant can be trained, or
/// none was.
void study_command(const StudyOptions& options);

}  // namespace ringlet
