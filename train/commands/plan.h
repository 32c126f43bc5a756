#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "train/commands/output.h"

namespace ringlet {

struct PlanOptions {
  std::string config;
  std::vector<std::string> overrides;
  std::string device = "this", link, budget;  // budget: bytes of a rank; empty: the device's
  std::string corpus;                         // empty: the config's, where it is there
  int64_t vocabulary = 0;                     // 0: the corpus's, or 257 where that is not there
  int64_t stage = 0;                          // of the config's; 0: the one that needs most
  int64_t windows = 0;                        // of the corpus, to plan; 0: those of one step
  bool max_context = false, calibrate = false, paper = false, tune = false, measure = false;
  OutputFormat format = OutputFormat::text;
};

/// Runs the config's step dry and prints what it needs and does. Throws Error when the budget is below the weights, their
/// gradients and moments.
void plan_command(const PlanOptions& options);

}  // namespace ringlet
