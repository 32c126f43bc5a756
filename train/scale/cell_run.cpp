#include "train/scale/cell_run.h"

#include <fmt/format.h>

#include <algorithm>

#include "kernels/cpu/fma_peak.h"
#include "train/console.h"
#include "train/devices.h"
#include "train/plan/calibration.h"
#include "train/plan/device_profiles.h"
#include "train/plan/memory_choice.h"
#include "train/plan/plan.h"
#include "train/quantile.h"
#include "train/units.h"
#include "train/verify/compare_steps.h"
#include "train/world.h"

namespace ringlet {
namespace {

constexpr int kPeakSamples = 5;
constexpr double kBytesOfComparison = 16;  // two gradients in double, of each weight

/// Of the processor's cores at this moment; GPUs have had theirs since the plan.
double peak_gflops_of(const PlannedCell& planned) {
  if (planned.config.run.device == DeviceKind::cuda) return planned.cell.peak_gflops;
  cpu::ThreadTeam team(int(planned.cell.cores));
  std::vector<double> samples;
  for (int i = 0; i < kPeakSamples; ++i) samples.push_back(cpu::fma_peak_gflops(team));
  return quantile(samples, 0.5);
}

void fill_in(Cell& cell, const Measured& measured, double peak_gflops) {
  cell.step_samples_ms = measured.step_ms;
  cell.peak_gflops = peak_gflops;
  derive_speed(cell);
  cell.predicted_ratio = cell.predicted_step_ms / cell.step_ms;
  cell.exposed_ms = median(measured.exposed_ms);
  cell.bubble_percent = median(measured.bubble_percent);
  cell.imbalance = median(measured.imbalance);
  cell.attention_ms = mean(measured.attention_ms);
  cell.ring_wait_ms = mean(measured.ring_wait_ms);
  cell.peak_bytes = double(*std::ranges::max_element(measured.peak_bytes));
  cell.sent_bytes = double(*std::ranges::max_element(measured.sent_bytes));
}

/// The cell's step on one rank with all cores, or on one GPU. Its policy and chunks are the cell's; its gradients have
/// nobody to share with.
Config one_rank_config(Config config) {
  config.run.ranks = 1;
  config.run.ring = 0;
  config.run.threads_per_rank = 0;
  config.run.link.clear();
  config.memory.arena_bytes = 0;
  config.memory.zero_stage = 1;
  return config;
}

/// Empty: one rank can tell the gradient.
std::string why_not_on_one_rank(const Config& config, const GptConfig& gpt, double host_bytes) {
  const DryRun run{config, gpt, Mask{{0}, config.data.window}};
  const bool gpu = config.run.device == DeviceKind::cuda;
  const double tensors = double(peak_bytes(run)), compared = kBytesOfComparison * double(parameter_count(gpt));
  const double needed = gpu ? compared : tensors + compared;
  const auto too_much = [](double bytes, double there) {
    return fmt::format("not compared: one rank would need {}, {} are there", human_bytes(bytes), human_bytes(there));
  };
  if (gpu && tensors > budget_bytes(config)) return too_much(tensors, budget_bytes(config));
  return needed <= host_bytes ? std::string() : too_much(needed, host_bytes);
}

/// Takes the time of one step on all cores where `known` is not of this length. An error on the way leaves the cell as
/// measured.
void compare_gradient(const PlannedCell& planned, const MadeUpText& text, Measured measured, OneRankGradient& known,
                      Cell& cell) try {
  if (cell.ranks == 1) {
    known.seq_len = cell.seq_len;
    known.values = std::move(measured.gradient);
    return;
  }
  if (known.seq_len != cell.seq_len) {
    known.seq_len = 0;
    const Config alone = one_rank_config(planned.config);
    cell.gradient_note = why_not_on_one_rank(alone, planned.gpt, known.host_bytes);
    if (!cell.gradient_note.empty()) return;
    const StepCounts one_step{.warmup_steps = 0, .least_steps = 1, .least_seconds = 0};
    known.values = train_steps(alone, planned.gpt, text, one_step, {}, KeepGradient::of_first_step).gradient;
    known.seq_len = cell.seq_len;
  }
  const Deviation worst = gradient_deviations(planned.gpt, measured.gradient, known.values).error;
  cell.gradient_error = worst.error;
  cell.gradient_tolerance = worst.tolerance;
  cell.gradient_note = worst.where;
} catch (const Error& error) {
  cell.gradient_note = fmt::format("not compared: {}", error.what());
}

std::optional<Rates> kept_rates(const Devices& devices, Dtype dtype) try {
  return load_rates(devices.rates_name(dtype));
} catch (const Error&) {  // damaged: nothing is known of times
  return {};
}

void predict(PlannedCell& planned, const Devices& devices, std::optional<Rates> rates) {
  const Config& config = planned.config;
  Cell& cell = planned.cell;
  if (rates && !config.run.link.empty()) rates->link = parse_link(config.run.link);
  const DryRun run{config, planned.gpt, Mask{{0}, config.data.window}};
  const Plan plan = make_plan(run, rates ? &*rates : nullptr, devices.threads_per_rank(), devices.worker_count());
  cell.predicted_peak_bytes = double(plan.fullest().peak_bytes);
  cell.peak_moment = plan.fullest().moment.text();
  cell.predicted_sent_bytes = double(plan.most_sent_bytes());
  cell.tokens_per_step = double(plan.tokens_per_step);
  cell.model_flops = plan.flops.model;
  cell.palm_flops = plan.flops.palm;
  cell.executed_flops = plan.flops.executed;
  if (!rates) return;
  cell.predicted_step_ms = 1e3 * plan.step_seconds;
  cell.predicted_bubble_percent = plan.bubble_percent();
}

}  // namespace

Config cell_config(const CellWork& work, int64_t seq_len, int64_t ranks) {
  std::vector<std::string> overrides = work.overrides;
  overrides.push_back(fmt::format("run.seq_len={}", seq_len));
  overrides.push_back(fmt::format("run.ranks={}", ranks));
  Config config = load_config(work.config, overrides);
  config.run.verify = Config::Run::kVerifyOff;
  config.train.eval_every = 0;
  config.train.schedule = ScheduleShape::constant;
  config.train.warmup_steps = 0;
  return config;
}

PlannedCell plan_cell(const CellWork& work, int64_t seq_len, int64_t ranks) {
  PlannedCell planned;
  Cell& cell = planned.cell;
  cell.seq_len = seq_len;
  cell.ranks = ranks;
  const auto impossible = [&](std::string reason) {
    cell.status = CellStatus::impossible;
    cell.reason = std::move(reason);
    return planned;
  };
  try {
    planned.config = cell_config(work, seq_len, ranks);
    planned.gpt = planned.config.gpt(work.vocabulary);
    planned.gpt.validate();
    const Config::Run& run = planned.config.run;
    cell.layout = name_of(run.layout);
    cell.ring = double(run.ring_size());
    const Devices devices(run.device, host_threads(run));
    cell.threads_per_rank = devices.threads_per_rank();
    cell.cores = double(std::min<int64_t>(devices.worker_count(), run.ranks * devices.threads_per_rank()));
    if (run.device == DeviceKind::cuda && planned.gpt.dtype == Dtype::bf16) {
      const double flops = published_peak_flops(devices.name());
      if (flops > 0) cell.peak_gflops = 1e-9 * flops * cell.cores;
    }
    const SequenceLayout layout = run.sequence_layout();
    cell.tokens_per_rank = double(layout.max_rows());
    for (int rank = 0; rank < layout.ring_size(); ++rank) {
      if (layout.rows(rank) > 0) continue;
      return impossible(fmt::format("rank {} of the ring would hold 0 of {} tokens", rank, seq_len));
    }
    planned.config = resolved_recompute(planned.config, planned.gpt);
    predict(planned, devices, kept_rates(devices, planned.gpt.dtype));
  } catch (const Error& error) {
    return impossible(error.what());
  }
  const double budget = budget_bytes(planned.config);
  if (cell.predicted_peak_bytes > budget) {
    return impossible(fmt::format("out of memory: needs {} a rank, {} are there", human_bytes(cell.predicted_peak_bytes),
                                  human_bytes(budget)));
  }
  return planned;
}

void calibrate_cell(PlannedCell& planned) try {
  const Config::Run& run = planned.config.run;
  const Devices devices(run.device, host_threads(run));
  predict(planned, devices, calibrate(planned.config, planned.gpt, devices));
} catch (const Error&) {  // the cell says what is wrong when it is measured
}

std::optional<Cell> measure_cell(const CellWork& work, const PlannedCell& planned, const CellVisit& visit) {
  Cell cell = planned.cell;
  try {
    const MadeUpText text(visit.folder, cell.seq_len, work.vocabulary);
    const double peak_before = peak_gflops_of(planned);
    const KeepGradient keep = visit.one_rank == nullptr ? KeepGradient::no : KeepGradient::of_first_step;
    Measured measured = train_steps(planned.config, planned.gpt, text, work.counts, visit.stop, keep);
    if (measured.stopped) return {};
    fill_in(cell, measured, (peak_before + peak_gflops_of(planned)) / 2);
    if (visit.one_rank != nullptr) compare_gradient(planned, text, std::move(measured), *visit.one_rank, cell);
  } catch (const Error& error) {
    cell.status = CellStatus::failed;
    cell.reason = error.what();
  }
  return cell;
}

}  // namespace ringlet
