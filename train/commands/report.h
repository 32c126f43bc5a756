#pragma once

#include <string>
#include <vector>

#include "train/commands/output.h"

namespace ringlet {

struct ReportOptions {
  std::vector<std::string> folders;  // of runs and of studies
  std::string output;                // empty: report.html in the only folder, or here
  OutputFormat format = OutputFormat::text;
};

/// Writes a page about runs, side by side, and studies, and its plots beside it. Throws Error for a folder that is neither.
void report_command(const ReportOptions& options);

}  // namespace ringlet
