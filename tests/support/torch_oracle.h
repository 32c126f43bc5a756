#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "model/gpt_config.h"
#include "model/sequence_layout.h"
#include "train/verify/reference_gpt.h"

namespace ringlet::test {

/// One window of tokens, and how to train on it.
struct OracleCase {
  GptConfig config;
  std::map<std::string, std::vector<float>> parameters;
  std::vector<int32_t> tokens, labels;  // [T]; label -1: no loss here
  Mask mask;
  double loss_scale = 1;
  AdamW adamw{1e-3f, 0.9f, 0.95f, 1e-8f, 0.1f, 1, 1};  // gradient_scale and step are not used
  double clip = 1;
  int steps = 0;                  // optimizer steps, all on this window
  std::string dtype = "float64";  // or float32

  /// The same for reference_gpt.
  ReferenceInput reference_input() const;
};

struct OracleResult {
  ReferenceResult first;       // losses and gradients before any step
  Values weights;              // after all steps
  std::vector<double> losses;  // of each step, scaled
  std::vector<double> norms;   // of each step's gradient, before clipping
};

/// What PyTorch computes (tests/peers/torch_oracle.py, run by RINGLET_PYTHON, python3 or
/// /usr/bin/python3). Nothing where none of them can import torch: tests skip then. Throws Error
/// with PyTorch's words when it fails.
std::optional<OracleResult> run_oracle(const OracleCase& input);

}  // namespace ringlet::test
