#include "train/commands/report.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "kernels/check.h"
#include "train/report/run_report.h"
#include "train/report/study_report.h"
#include "train/study/study_page.h"

namespace ringlet {
namespace {

/// What the folders hold.
struct Contents {
  std::vector<RunMetrics> runs;
  std::vector<Study> scalings;
  std::vector<StudyResult> studies;

  void add(const std::filesystem::path& folder) {
    std::error_code ignored;
    if (is_run(folder)) {
      runs.push_back(read_run(folder));
    } else if (std::filesystem::exists(cells_path(folder), ignored)) {
      scalings.push_back(make_study(read_cells(folder)));
    } else if (std::filesystem::exists(variants_path(folder), ignored)) {
      studies.push_back(read_study(folder));
    } else {
      throw Error(folder.string() + " has neither metrics.jsonl, of a run, nor cells.jsonl or variants.jsonl, of a study",
                  "give a run's folder, as runs/NAME, or that of a study by `ringlet scale` or `ringlet study`");
    }
  }
  size_t count() const { return runs.size() + scalings.size() + studies.size(); }
  std::string title() const {
    if (runs.size() > 1) return fmt::format("{} runs compared", runs.size());
    if (runs.size() == 1) return "Run " + runs[0].name;
    if (count() > 1) return fmt::format("{} studies", count());
    return studies.empty() ? scalings[0].title() : studies[0].title();
  }
};

/// The studies, each under its title where it does not stand alone.
template <class AnyStudy, class Add>
void add_all(HtmlPage& page, const Contents& contents, const std::vector<AnyStudy>& studies, const char* prefix,
             const Add& add) {
  for (size_t i = 0; i < studies.size(); ++i) {
    if (contents.count() > 1) page.heading(studies[i].title());
    add(page, studies[i], studies.size() > 1 || contents.count() > studies.size() ? fmt::format("{}{}_", prefix, i + 1) : "");
  }
}

}  // namespace

void report_command(const ReportOptions& options) {
  Contents contents;
  for (const std::filesystem::path folder : options.folders) contents.add(folder);
  const std::filesystem::path output =
      !options.output.empty()       ? std::filesystem::path(options.output)
      : options.folders.size() == 1 ? std::filesystem::path(options.folders[0]) / "report.html"
                                    : std::filesystem::path("report.html");
  HtmlPage page(contents.title());
  if (!contents.runs.empty()) add_runs(page, contents.runs);
  add_all(page, contents, contents.scalings, "study", add_study);
  add_all(page, contents, contents.studies, "variants", add_variant_study);
  page.write(output);
  const bool json = options.format == OutputFormat::json;
  fmt::print("{}\n", json ? nlohmann::json{{"report", output.string()}}.dump() : output.string());
}

}  // namespace ringlet
