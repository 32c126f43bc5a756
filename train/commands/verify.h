#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "train/commands/output.h"

namespace ringlet {

enum class VerifyExtent : uint8_t { full, quick };

struct VerifyOptions {
  std::string config;                  // absent: models of all kinds
  std::vector<std::string> overrides;  // key=value
  int64_t stage = 0;                   // of the config's; 0: the longest
  std::vector<int64_t> ranks;          // ring sizes; empty: as the extent says
  std::vector<int64_t> lengths;        // likewise
  VerifyExtent extent = VerifyExtent::full;
  OutputFormat format = OutputFormat::text;
};

/// `ringlet verify`: the ring against the dense model in double, case by case: a table on stdout, or one JSON object.
/// Throws Error, after the table, when a case failed; UsageError for ranks and lengths that cannot be.
void verify_command(const VerifyOptions& options);

}  // namespace ringlet
