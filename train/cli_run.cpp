#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <new>
#include <system_error>

#include "kernels/check.h"
#include "train/cli.h"
#include "train/console.h"
#include "train/signals.h"

namespace ringlet {
namespace {

enum ExitCode { kDone = 0, kFailed = 1, kWrongUsage = 2, kReaderGone = 141 };  // the last as if SIGPIPE had ended it

int report(const char* cause, const std::string& advice, ExitCode code) {
  print_error(fmt::format("ringlet: {}\n", cause));
  if (!advice.empty()) print_error(fmt::format("  {}\n", advice));
  return code;
}

/// One live line; elsewhere than on a terminal nothing.
void show_prepared(int64_t done_bytes, int64_t total_bytes) {
  if (isatty(STDERR_FILENO) == 0) return;
  const std::string total = total_bytes < 0 ? "" : " of " + human_bytes(double(total_bytes));
  print_error(fmt::format("\r{}{}\x1b[K{}", human_bytes(double(done_bytes)), total,
                          done_bytes == total_bytes ? "\n" : ""));
}

struct Runner {
  int operator()(const HelpText& help) const {
    fmt::print("{}", help.text);
    return kDone;
  }
  int operator()(const PrepareCommand& command) const {
    const PrepareReport made = prepare(command.options, show_prepared);
    const bool json = command.format == OutputFormat::json;
    fmt::print("{}", json ? to_json(made) + "\n" : to_text(made));
    return kDone;
  }
  int operator()(const InspectOptions& options) const { return inspect(options), kDone; }
  int operator()(const TrainOptions& options) const { return train(options); }
  int operator()(const EvalOptions& options) const { return eval(options), kDone; }
  int operator()(const GenerateOptions& options) const { return generate(options), kDone; }
  int operator()(const PlanOptions& options) const { return plan_command(options), kDone; }
  int operator()(const VerifyOptions& options) const { return verify_command(options), kDone; }
  int operator()(const ExplainOptions& options) const { return explain(options), kDone; }
  int operator()(const ProfileOptions& options) const { return profile_command(options), kDone; }
  int operator()(const ScaleOptions& options) const { return scale_command(options), kDone; }
  int operator()(const StudyOptions& options) const { return study_command(options), kDone; }
  int operator()(const ReportOptions& options) const { return report_command(options), kDone; }
  int operator()(const DoctorCommand& command) const { return doctor(command.format), kDone; }
};

}  // namespace

int run_cli(int argument_count, const char* const* arguments) {
  try {
    if (argument_count <= 1) {
      const char* const help[] = {"ringlet", "--help"};
      print_error(std::get<HelpText>(parse_command_line(2, help)).text);
      return kWrongUsage;
    }
    ignore_write_signals();
    const int code = std::visit(Runner{}, parse_command_line(argument_count, arguments));
    // Output that did not arrive was not done.
    if (std::fflush(stdout) == 0) return code;
    if (errno == EPIPE) return kReaderGone;
    throw Error("standard output cannot be written", "give it a file with room");
  } catch (const UsageError& error) {
    return report(error.what(), error.advice, kWrongUsage);
  } catch (const Error& error) {
    return report(error.what(), error.advice, kFailed);
  } catch (const std::bad_alloc&) {
    return report("the memory of this machine is not enough",
                  "shorten run.seq_len, or set memory.recompute to \"full\"", kFailed);
  } catch (const std::system_error& error) {
    return error.code() == std::errc::broken_pipe ? kReaderGone : report(error.what(), "", kFailed);
  } catch (const std::exception& error) {
    return report(error.what(), "", kFailed);
  }
}

}  // namespace ringlet
