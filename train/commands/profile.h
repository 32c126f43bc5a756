#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "train/commands/output.h"

namespace ringlet {

struct ProfileOptions {
  std::string config, output;  // paths; output: a folder that is not there yet
  std::vector<std::string> overrides;
  int64_t stage = 0;  // of the config's; 0: the longest
  int64_t steps = 3, warmup = 2;
  OutputFormat format = OutputFormat::text;
};

/// Trains a few steps, writes a trace of each rank into the folder and prints how well messages hide behind compute.
/// Throws Error, and UsageError where the folder exists.
void profile_command(const ProfileOptions& options);

}  // namespace ringlet
