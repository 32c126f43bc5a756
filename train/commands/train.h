#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace ringlet {

enum class ResumeChoice : uint8_t { no, newest };  // newest: the newest whole checkpoint of the run

struct TrainOptions {
  std::string config;  // path
  /// "key=value", in their order; --ranks, --seq-len and the like stand here as the keys they mean.
  std::vector<std::string> overrides;
  ResumeChoice resume = ResumeChoice::no;
};

/// Trains in this process, until the last step or until a signal asks to stop. Returns the exit
/// code of the program; throws Error.
int train(const TrainOptions& options);

}  // namespace ringlet
