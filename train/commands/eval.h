#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "train/commands/output.h"

namespace ringlet {

struct EvalOptions {
  std::string run;              // a run's folder, or one of its checkpoints
  std::string corpus;           // path; empty: the validation corpus of the run
  std::string bigram_corpus;    // path; fits the byte-bigram model to compare with; empty: none
  std::string csv;              // path for both tables of by_position; empty: none
  int64_t seq_len = 0;          // 0: as trained
  int64_t ranks = 0;            // of one ring; 0: as trained
  int64_t windows = 0;          // 0: all
  int64_t compare_context = 0;  // tokens; 0: no comparison
  bool by_position = false;     // print tables of the loss by position and by distance
  std::vector<std::string> overrides;  // "key=value" for the run's config
  OutputFormat format = OutputFormat::text;
};

/// Prints the loss of a run's newest checkpoint on a corpus. Throws Error.
void eval(const EvalOptions& options);

}  // namespace ringlet
