#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "train/commands/output.h"

namespace ringlet {

enum class ScaleMode : uint8_t { strong, weak, max_context };

struct ScaleOptions {
  std::string config;
  std::vector<std::string> overrides;
  std::vector<std::string> lengths{"1k", "2k", "4k"};  // of all ranks (strong), of a rank (weak)
  std::vector<int64_t> ranks{1, 2, 4};
  ScaleMode mode = ScaleMode::strong;
  int64_t steps = 9;   // measured in each cell, at least
  std::string budget;  // bytes of a rank; empty: the machine's
  std::string folder;
  bool calibrate = false;  // before each visit of a cell
  OutputFormat format = OutputFormat::text;
};

/// Measures a grid of lengths and ranks into a folder, which it can go on with, and prints the study. Throws Error when no
/// cell can run, or none did.
void scale_command(const ScaleOptions& options);

}  // namespace ringlet
