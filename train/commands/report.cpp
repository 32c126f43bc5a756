#include "train/commands/report.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "kernels/check.h"
#include "train/report/run_report.h"
#include "train/report/study_report.h"

namespace ringlet {
namespace {

std::string title_of(const std::vector<RunMetrics>& runs, const std::vector<Study>& studies) {
  if (runs.size() > 1) return fmt::format("{} runs compared", runs.size());
  if (runs.size() == 1) return "Run " + runs[0].name;
  return studies.size() == 1 ? studies[0].title() : fmt::format("{} studies", studies.size());
}

}  // namespace

void report_command(const ReportOptions& options) {
  std::vector<RunMetrics> runs;
  std::vector<Study> studies;
  for (const std::filesystem::path folder : options.folders) {
    std::error_code ignored;
    if (is_run(folder)) {
      runs.push_back(read_run(folder));
    } else if (std::filesystem::exists(cells_path(folder), ignored)) {
      studies.push_back(make_study(read_cells(folder)));
    } else {
      throw Error(folder.string() + " has neither metrics.jsonl, of a run, nor cells.jsonl, of a study",
                  "give a run's folder, as runs/NAME, or that of a study by `ringlet scale`");
    }
  }
  const std::filesystem::path output =
      !options.output.empty()       ? std::filesystem::path(options.output)
      : options.folders.size() == 1 ? std::filesystem::path(options.folders[0]) / "report.html"
                                    : std::filesystem::path("report.html");
  HtmlPage page(title_of(runs, studies));
  if (!runs.empty()) add_runs(page, runs);
  for (size_t i = 0; i < studies.size(); ++i) {
    if (runs.size() + studies.size() > 1) page.heading(studies[i].title());
    add_study(page, studies[i], studies.size() > 1 ? fmt::format("study{}_", i + 1) : "");
  }
  page.write(output);
  const bool json = options.format == OutputFormat::json;
  fmt::print("{}\n", json ? nlohmann::json{{"report", output.string()}}.dump() : output.string());
}

}  // namespace ringlet
