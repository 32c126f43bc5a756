#include "train/commands/scale.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "kernels/check.h"
#include "train/console.h"
#include "train/devices.h"
#include "train/machine.h"
#include "train/plan/memory_choice.h"
#include "train/plan/plan.h"
#include "train/report/study_report.h"
#include "train/scale/cell_run.h"
#include "train/signals.h"
#include "train/units.h"
#include "train/world.h"

namespace ringlet {
namespace {

const char* name_of(ScaleMode mode) {
  return mode == ScaleMode::strong ? "strong" : mode == ScaleMode::weak ? "weak" : "max-context";
}

/// Cells take turns, so that a minute in which the machine is slow slows some steps of every cell, which a median leaves out,
/// and not all steps of one.
constexpr int64_t kVisits = 3;

constexpr double kMemoryOfOneRank = 0.8;  // of the machine's, as of ranks that train

int64_t visits_of(const ScaleOptions& options) { return options.mode == ScaleMode::max_context ? 1 : kVisits; }

CellWork work_of(const ScaleOptions& options) {
  CellWork work{.config = options.config, .overrides = options.overrides};
  work.counts.least_steps = (options.steps + kVisits - 1) / kVisits;
  if (!options.budget.empty()) {
    work.overrides.push_back(fmt::format("memory.arena_bytes={}", int64_t(parse_bytes(options.budget))));
  }
  const Config config = load_config(work.config, work.overrides);
  if (!config.stages.empty()) {
    throw UsageError(
        fmt::format("{} has stages, and scale measures lengths of its own", options.config),
        "give it a config without [[stage]]; `ringlet plan " + options.config +
            "` tells what each stage takes");
  }
  if (config.run.comm != CommKind::threads) {
    throw UsageError("scale runs its ranks as threads of one process", "add --set run.comm=threads");
  }
  if (config.run.device == DeviceKind::cuda) Devices{config.run.device};  // says what is wrong where there is none
  work.vocabulary = planned_vocabulary(config);
  if (options.mode == ScaleMode::max_context) {
    // One step that shows that it fits.
    work.counts = {.warmup_steps = 0, .least_steps = 1, .least_seconds = 0};
  }
  return work;
}

std::string machine_of(const Config& config) {
  if (config.run.device == DeviceKind::cuda) return Devices(DeviceKind::cuda).name();
  return fmt::format("{}, {} cores", processor_name(), usable_cores());
}

StudySettings settings_of(const ScaleOptions& options, const CellWork& work) {
  Config config = load_config(work.config, work.overrides);
  const Config::Model& model = config.model;
  const std::string shape =
      fmt::format("{} ({} layers, width {}, heads {}/{} of {}, recompute {})", config.run.name, model.layers, model.width,
                  model.heads, model.kv_heads, model.head_dim, name_of(config.memory.recompute));
  config.run.seq_len = 0;  // the cell's own
  config.run.ranks = 0;
  StudySettings settings{{"mode", name_of(options.mode)},
                         {"config", to_toml(config)},
                         {"model", shape},
                         {"vocabulary", std::to_string(work.vocabulary)},
                         {"steps", std::to_string(work.counts.least_steps * visits_of(options))},
                         {"machine", machine_of(config)}};
  if (options.calibrate) settings["calibrated"] = "before each visit";
  return settings;
}

/// The longest T in the budget of a rank; 1,024 where not even that fits, which its plan will say.
int64_t longest_length(const CellWork& work, int64_t ranks) {
  try {
    Config config = cell_config(work, 1024, ranks);
    const DryRun run{config, config.gpt(work.vocabulary), Mask{{0}, config.data.window}};
    if (config.memory.recompute == Recompute::automatic) config.memory = smallest_memory(run);
    return std::max<int64_t>(1024, longest_context(run, budget_bytes(config)));
  } catch (const Error&) {
    return 1024;
  }
}

std::vector<PlannedCell> planned_cells(const ScaleOptions& options, const CellWork& work) {
  std::vector<PlannedCell> cells;
  const auto add = [&](int64_t seq_len, int64_t ranks) {
    const bool there = std::ranges::any_of(cells, [&](const PlannedCell& other) {
      return other.cell.seq_len == seq_len && other.cell.ranks == ranks;
    });
    if (!there) cells.push_back(plan_cell(work, seq_len, ranks));
  };
  if (options.mode == ScaleMode::max_context) {
    for (const int64_t ranks : options.ranks) add(longest_length(work, ranks), ranks);
    return cells;
  }
  const int64_t ring = load_config(work.config, work.overrides).run.ring;  // 0: all ranks
  for (const std::string& length : options.lengths) {
    const int64_t tokens = parse_tokens(length);
    for (const int64_t ranks : options.ranks) {
      add(options.mode == ScaleMode::weak ? tokens * (ring == 0 ? ranks : ring) : tokens, ranks);
    }
  }
  return cells;
}

void check_any_can_run(const std::vector<PlannedCell>& cells) {
  const auto possible = [](const PlannedCell& planned) { return planned.cell.status == CellStatus::done; };
  if (std::ranges::any_of(cells, possible)) return;
  const Cell& first = cells.front().cell;
  throw Error(fmt::format("none of the {} cells can run; T = {} on {} rank{}: {}", cells.size(),
                          length_text(double(first.seq_len)), first.ranks, first.ranks == 1 ? "" : "s", first.reason),
              "choose other --seq-len and --ranks, a smaller model, or more memory; `ringlet plan` tells what a run needs");
}

void say_cell(Console& console, const Cell& cell) {
  if (cell.status != CellStatus::done) {
    console.say(fmt::format("  {}: {}", name_of(cell.status), cell.reason));
    return;
  }
  const std::string ratio = std::isfinite(cell.predicted_ratio)
                                ? fmt::format(", predicted {:.4g} ({:.2f} times that)", cell.predicted_step_ms, cell.predicted_ratio)
                                : "";
  console.say(fmt::format("  {:.4g} ms a step (p10-p90 {:.4g}-{:.4g}, n = {:.0f}){}, {} tokens/s", cell.step_ms,
                          cell.step_ms_p10, cell.step_ms_p90, cell.steps, ratio, human_count(cell.tokens_per_second)));
}

/// Cells on their way to a file.
struct Measuring {
  const CellWork& work;
  const std::vector<PlannedCell>& cells;
  int64_t visits;
  bool calibrate;
  CellsFile& file;
  std::filesystem::path folder;
  Console& console;
};

/// Visits every cell once that has not been visited so often. False: it was asked to stop.
bool visit_all(const Measuring& measuring, int64_t earlier, OneRankGradient& one_rank) {
  CellsFile& file = measuring.file;
  for (size_t i = 0; i < measuring.cells.size(); ++i) {
    PlannedCell planned = measuring.cells[i];
    const Cell& cell = planned.cell;
    if (stop_requested()) return false;
    const bool there = file.has(cell.seq_len, cell.ranks, earlier);
    if (there && earlier > 0) continue;
    const std::string turn = measuring.visits > 1 ? fmt::format(" ({} of {})", earlier + 1, measuring.visits) : "";
    const std::string expected = measuring.calibrate && cell.status == CellStatus::done ? ", calibrating first"
                                 : std::isfinite(cell.predicted_step_ms)
                                     ? fmt::format(", predicted {:.4g} ms a step", cell.predicted_step_ms)
                                     : "";
    measuring.console.say(fmt::format("[{}/{}] T = {} on {} rank{}{}{}", i + 1, measuring.cells.size(),
                                      length_text(double(cell.seq_len)), cell.ranks, cell.ranks == 1 ? "" : "s", turn,
                                      there ? ": measured before" : expected));
    if (there) continue;
    const bool possible = cell.status == CellStatus::done;
    if (measuring.calibrate && possible) {
      calibrate_cell(planned);
      if (stop_requested()) return false;
    }
    const CellVisit visit{measuring.folder, stop_requested, earlier == 0 ? &one_rank : nullptr};
    const std::optional<Cell> measured = possible ? measure_cell(measuring.work, planned, visit) : cell;
    if (!measured) return false;
    file.append(*measured);
    say_cell(measuring.console, *measured);
    expect_no_rank_left_behind();
  }
  return true;
}

bool measure(const Measuring& measuring) {
  OneRankGradient one_rank{.host_bytes = kMemoryOfOneRank * double(physical_memory_bytes())};
  for (int64_t earlier = 0; earlier < measuring.visits; ++earlier) {
    if (!visit_all(measuring, earlier, one_rank)) return false;
  }
  return true;
}

void write_study(const Study& study, const std::filesystem::path& folder) {
  write_atomically(folder / "cells.csv", to_csv(study.cells));
  write_atomically(folder / "study.json", to_json(study).dump(1) + '\n');
  HtmlPage page(study.title());
  add_study(page, study, "");
  page.write(folder / "report.html");
}

}  // namespace

void scale_command(const ScaleOptions& options) {
  const CellWork work = work_of(options);
  const std::vector<PlannedCell> cells = planned_cells(options, work);
  const std::filesystem::path folder = options.folder;
  if (std::error_code ignored; !std::filesystem::exists(cells_path(folder), ignored)) check_any_can_run(cells);
  const StudySettings settings = settings_of(options, work);
  CellsFile file(folder, settings);
  install_signal_handlers();
  Console console;
  const bool finished = measure({work, cells, visits_of(options), options.calibrate, file, folder, console});
  const Study study = make_study({settings, file.visits()});
  write_study(study, folder);
  const bool any = std::ranges::any_of(study.cells, [](const Cell& cell) { return cell.status == CellStatus::done; });
  if (finished && !any) {
    throw Error("no cell could be measured; " + folder.string() + "/cells.csv has the reasons",
                "choose other --seq-len and --ranks, and another folder");
  }
  if (options.format == OutputFormat::json)
    fmt::print("{}\n", to_json(study).dump());
  else if (any)
    fmt::print("{}\n\n{}\n", study.title(), to_text(study));
  console.say(finished ? fmt::format("{0}/report.html has the plots, cells.csv and study.json the numbers", folder.string())
                       : "stopped as asked; the same command goes on where it stopped");
}

}  // namespace ringlet
