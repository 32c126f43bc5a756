#include "train/scale/cell_run.h"

#include <fmt/format.h>

#include <algorithm>

#include "data/corpus.h"
#include "data/corpus_writer.h"
#include "kernels/cpu/fma_peak.h"
#include "kernels/observed_backend.h"
#include "train/console.h"
#include "train/machine.h"
#include "train/plan/calibration.h"
#include "train/plan/plan.h"
#include "train/quantile.h"
#include "train/trainer.h"
#include "train/units.h"
#include "train/world.h"

namespace ringlet {
namespace {

constexpr int64_t kMostTimes = 20;  // as many steps as asked for
constexpr int kPeakSamples = 5;

/// Time in attention and in waits for messages of the ring, of one rank.
class AttentionClock : public OpObserver {
 public:
  explicit AttentionClock(const Trace& trace) : trace_(trace), waited_before_(trace.exposed_wait()) {}
  void on_call(const OpCall& call, std::chrono::nanoseconds took) override {
    if (is_attention(call.op)) attention_ += took;
  }
  void on_wait(Event) override {
    const std::chrono::nanoseconds waited = trace_.exposed_wait();
    if (trace_.place().hop >= 0) ring_wait_ += waited - waited_before_;
    waited_before_ = waited;
  }
  /// Ends a step.
  void lap() {
    attention_ms.push_back(1e-6 * double(attention_.count()));
    ring_wait_ms.push_back(1e-6 * double(ring_wait_.count()));
    attention_ = ring_wait_ = {};
  }
  std::vector<double> attention_ms, ring_wait_ms;  // of each step

 private:
  const Trace& trace_;
  std::chrono::nanoseconds attention_{}, ring_wait_{}, waited_before_{};
};

/// A corpus of one document of `length` tokens: every window is the same and full.
class MadeUpCorpus {
 public:
  MadeUpCorpus(const std::filesystem::path& folder, int64_t length, int64_t vocabulary) : path_(folder / "text.h5") {
    const std::unique_ptr<Tokenizer> ids = make_id_tokenizer("made up", vocabulary, vocabulary - 1);
    CorpusSpool spool(folder.string(), *ids);
    std::vector<int32_t> tokens(static_cast<size_t>(length));
    for (size_t i = 0; i < tokens.size(); ++i) tokens[i] = int32_t(int64_t(7 * i) % (vocabulary - 1));
    spool.append(tokens);
    spool.end_document("made up");
    spool.finish();
    PendingCorpus corpus(spool, {0, length, 0, 1}, "made up", path_.string());
    corpus.publish();
  }
  ~MadeUpCorpus() {
    std::error_code ignored;
    std::filesystem::remove(path_, ignored);
  }
  MadeUpCorpus(const MadeUpCorpus&) = delete;
  MadeUpCorpus& operator=(const MadeUpCorpus&) = delete;
  std::string path() const { return path_.string(); }

 private:
  std::filesystem::path path_;
};

int cores_of(const Config::Run& run) {
  return int(std::min<int64_t>(usable_cores(), run.ranks * threads_per_rank(run)));
}

double measured_peak_gflops(int cores) {
  std::vector<double> samples;
  for (int i = 0; i < kPeakSamples; ++i) samples.push_back(cpu::fma_peak_gflops(cores));
  return quantile(samples, 0.5);
}

/// What the measured steps gave; ranks write their own places.
struct Measured {
  explicit Measured(size_t ranks) : attention_ms(ranks), ring_wait_ms(ranks), peak_bytes(ranks) {}
  std::vector<double> step_ms, exposed_ms, bubble_percent, imbalance;
  std::vector<double> attention_ms, ring_wait_ms;  // by rank
  std::vector<int64_t> peak_bytes, sent_bytes;     // by rank
  bool stopped = false;

  void add(const MetricsRecord& record) {
    step_ms.push_back(record.step_ms);
    exposed_ms.push_back(mean(record.exposed_ms));
    bubble_percent.push_back(mean(record.bubble_percent));
    imbalance.push_back(record.imbalance());
    sent_bytes = record.sent_bytes;
  }
  double seconds() const {
    double ms = 0;
    for (const double step : step_ms) ms += step;
    return ms / 1e3;
  }
};

/// Trains step by step; rank 0 says when it is enough.
Measured train_steps(const CellWork& work, const PlannedCell& planned, const WindowReader& windows, const Corpus& corpus,
                     const std::function<bool()>& stop) {
  const Config& config = planned.config;
  Measured measured(size_t(config.run.ranks));
  const TrainingRun run{config, planned.gpt, windows, nullptr, nullptr, nullptr, corpus.fingerprint(),
                        corpus.tokenizer_name(), corpus.tokenizer_hash(), nullptr, nullptr, nullptr};
  const SequenceLayout layout = make_layout(config.run.layout, config.run.seq_len, int(config.run.ring_size()));
  const auto enough = [&] {
    const int64_t steps = std::ssize(measured.step_ms);
    return steps >= work.least_steps &&
           (measured.seconds() >= work.least_seconds || steps >= kMostTimes * work.least_steps);
  };
  bool last = false;  // written by rank 0 before a barrier, read by all behind it
  run_world(config, [&](RankContext context, Comm& world) {
    AttentionClock clock(context.trace);
    ObservedBackend device(context.device, clock);
    Trainer trainer(run, {device, context.ring, context.trace, context.offload}, world, layout);
    for (int64_t step = 0; !last; ++step) {
      const MetricsRecord record = trainer.train_step();
      clock.lap();
      if (world.rank() == 0) {
        if (step >= work.warmup_steps) measured.add(record);
        measured.stopped = stop && stop();
        last = measured.stopped || enough();
      }
      world.barrier();
    }
    const auto rank = size_t(world.rank());
    const auto median = [&](const std::vector<double>& steps) {
      return quantile({steps.begin() + std::min(work.warmup_steps, std::ssize(steps)), steps.end()}, 0.5);
    };
    measured.attention_ms[rank] = median(clock.attention_ms);
    measured.ring_wait_ms[rank] = median(clock.ring_wait_ms);
    measured.peak_bytes[rank] = context.device.arena().peak_bytes();
  });
  return measured;
}

void fill_in(Cell& cell, const Measured& measured, double peak_gflops) {
  cell.steps = double(measured.step_ms.size());
  cell.step_ms = quantile(measured.step_ms, 0.5);
  cell.step_ms_p10 = quantile(measured.step_ms, 0.1);
  cell.step_ms_p90 = quantile(measured.step_ms, 0.9);
  cell.tokens_per_second = 1e3 * cell.tokens_per_step / cell.step_ms;
  cell.tokens_per_second_per_rank = cell.tokens_per_second / double(cell.ranks);
  cell.peak_gflops = peak_gflops;
  const double step_peak_flops = 1e6 * peak_gflops * cell.step_ms;
  cell.mfu_percent = 100 * cell.model_flops / step_peak_flops;
  cell.mfu_palm_percent = 100 * cell.palm_flops / step_peak_flops;
  cell.hfu_percent = 100 * cell.executed_flops / step_peak_flops;
  cell.exposed_ms = quantile(measured.exposed_ms, 0.5);
  cell.bubble_percent = quantile(measured.bubble_percent, 0.5);
  cell.imbalance = quantile(measured.imbalance, 0.5);
  cell.attention_ms = mean(measured.attention_ms);
  cell.ring_wait_ms = mean(measured.ring_wait_ms);
  cell.peak_bytes = double(*std::ranges::max_element(measured.peak_bytes));
  cell.sent_bytes = double(*std::ranges::max_element(measured.sent_bytes));
}

void predict(PlannedCell& planned) {
  const Config& config = planned.config;
  Cell& cell = planned.cell;
  const Devices devices(config.run.device, threads_per_rank(config.run));
  std::optional<Rates> rates;
  try {
    rates = load_rates(devices.rates_name());
  } catch (const Error&) {  // damaged: nothing is known of times
  }
  if (rates && !config.run.link.empty()) rates->link = parse_link(config.run.link);
  const DryRun run{config, planned.gpt, Mask{{0}, config.data.window}};
  const Plan plan = make_plan(run, rates ? &*rates : nullptr, devices.threads_per_rank(), devices.worker_count());
  cell.predicted_peak_bytes = double(plan.fullest().peak_bytes);
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
    cell.threads_per_rank = threads_per_rank(run);
    cell.cores = cores_of(run);
    const SequenceLayout layout = make_layout(run.layout, seq_len, int(run.ring_size()));
    cell.tokens_per_rank = double(layout.max_rows());
    for (int rank = 0; rank < layout.ring_size(); ++rank) {
      if (layout.rows(rank) > 0) continue;
      return impossible(fmt::format("rank {} of the ring would hold 0 of {} tokens", rank, seq_len));
    }
    planned.config = resolved_recompute(planned.config, planned.gpt);
    predict(planned);
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

std::optional<Cell> measure_cell(const CellWork& work, const PlannedCell& planned, const std::filesystem::path& folder,
                                 const std::function<bool()>& stop) {
  Cell cell = planned.cell;
  try {
    const MadeUpCorpus text(folder, cell.seq_len, work.vocabulary);
    const Corpus corpus = Corpus::open(text.path());
    const WindowReader windows(corpus, cell.seq_len);
    const double peak_before = measured_peak_gflops(int(cell.cores));
    const Measured measured = train_steps(work, planned, windows, corpus, stop);
    if (measured.stopped) return {};
    fill_in(cell, measured, (peak_before + measured_peak_gflops(int(cell.cores))) / 2);
  } catch (const Error& error) {
    cell.status = CellStatus::failed;
    cell.reason = error.what();
  }
  return cell;
}

}  // namespace ringlet
