#pragma once

#include <string>
#include <variant>

#include "train/commands/doctor.h"
#include "train/commands/eval.h"
#include "train/commands/explain.h"
#include "train/commands/generate.h"
#include "train/commands/inspect.h"
#include "train/commands/plan.h"
#include "train/commands/prepare.h"
#include "train/commands/profile.h"
#include "train/commands/report.h"
#include "train/commands/scale.h"
#include "train/commands/study.h"
#include "train/commands/train.h"
#include "train/commands/verify.h"

namespace ringlet {

/// --help and the like: print it and be done.
struct HelpText {
  std::string text;
};

struct PrepareCommand {
  PrepareOptions options;
  OutputFormat format = OutputFormat::text;
};
struct DoctorCommand {
  OutputFormat format = OutputFormat::text;
};

using Command = std::variant<HelpText, PrepareCommand, InspectOptions, TrainOptions, EvalOptions,
                             GenerateOptions, PlanOptions, VerifyOptions, ExplainOptions, ProfileOptions,
                             ScaleOptions, StudyOptions, ReportOptions, DoctorCommand>;

/// What the command line asks for. Throws UsageError with one line of why and one of what to do.
Command parse_command_line(int argument_count, const char* const* arguments);

/// The program: parses, runs, reports errors on stderr in two lines. Returns the exit code: 0 done,
/// 1 failed, 2 wrong usage.
int run_cli(int argument_count, const char* const* arguments);

}  // namespace ringlet
