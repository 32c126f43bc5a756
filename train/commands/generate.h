#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "train/commands/output.h"
#include "train/sampler.h"

namespace ringlet {

struct GenerateOptions {
  std::string run;  // a run's folder, or one of its checkpoints
  std::string prompt;
  int64_t tokens = 256;
  SamplingSettings sampling;
  int64_t seed = 1;
  std::vector<std::string> overrides;  // "key=value" for the run's config
  OutputFormat format = OutputFormat::text;
};

/// Prints the prompt and the text with which the run's newest checkpoint continues it. Throws
/// Error.
void generate(const GenerateOptions& options);

/// Without what the next tokens may change: U+FFFD at the end, which stands for a character that lacks bytes.
std::string settled(std::string text);

}  // namespace ringlet
