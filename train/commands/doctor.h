#pragma once

#include <string>
#include <vector>

#include "kernels/cuda_module.h"
#include "train/commands/output.h"

namespace ringlet {

/// One thing that a machine has, or lacks.
struct Finding {
  std::string name, value;
  std::string advice;  // what is missing and what to do; empty where nothing is
};

/// "CUDA", and one finding for each GPU.
std::vector<Finding> cuda_findings(const CudaModule& module);

std::vector<Finding> examine_machine();

/// Prints what this machine has and what is missing.
void doctor(OutputFormat format);

}  // namespace ringlet
