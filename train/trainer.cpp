#include "train/trainer.h"

#include <fmt/core.h>

#include <chrono>
#include <cmath>
#include <ctime>

#include "train/memory_table.h"
#include "train/verify/spot_check.h"

namespace ringlet {
namespace {

constexpr int kPrefetchDepth = 4;

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

/// Time this thread has really computed: with more ranks than cores the clock on the wall says less.
double thread_seconds() {
  timespec time{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return double(time.tv_sec) + 1e-9 * double(time.tv_nsec);
}

double to_ms(std::chrono::nanoseconds time) { return 1e-6 * double(time.count()); }

}  // namespace

TrainedModel::TrainedModel(const TrainingRun& run, RankContext context, Comm& all_ranks)
    : ring(context.ring, traffic),
      world(all_ranks, traffic),
      parameters(run.gpt, context.device, {all_ranks.rank(), all_ranks.size()},
                 run.config.gradients()),
      optimizer(parameters, world) {}

Trainer::Trainer(const TrainingRun& run, std::unique_ptr<TrainedModel> model, RankContext context,
                 const SequenceLayout& layout)
    : run_(run),
      config_(run.config),
      place_(stage_place(run_config(), run.stage)),
      settings_(run.config.step_settings()),
      model_(std::move(model)),
      parameters_(model_->parameters),
      optimizer_(model_->optimizer),
      traffic_(model_->traffic),
      gpt_(parameters_, run.gpt.rope_base),
      rank_{{context.device, model_->ring, context.trace, context.offload},
            model_->world,
            layout,
            settings_,
            gpt_},
      train_step_(rank_, parameters_, optimizer_, config_.data.mask, config_.data.window) {}

Trainer::Trainer(const TrainingRun& run, RankContext context, Comm& world,
                 const SequenceLayout& layout)
    : Trainer(run, std::make_unique<TrainedModel>(run, context, world), context, layout) {
  if (run.resume != nullptr) {
    load(*run.resume);
  } else {
    parameters_.initialise(uint64_t(config_.run.seed));
  }
  start_clocks();
  world.barrier();  // nobody's weights change before all have theirs
}

Trainer::Trainer(const TrainingRun& run, Trainer& before, const SequenceLayout& layout)
    : Trainer(run, std::move(before.model_), before.rank_.context, layout) {
  before.prefetcher_.reset();
  step_ = before.step_;
  tokens_ = before.tokens_;
  updates_ = before.updates_;
  skipped_ = before.skipped_;
  skipped_in_row_ = before.skipped_in_row_;
  saved_step_ = before.saved_step_;
  CHECK(step_ == place_.first_step, "stage ", place_.number, " begins behind step ",
        place_.first_step, ", not ", step_);
  rank_.context.device.arena().reset_peak();
  start_clocks();
}

void Trainer::start_clocks() {
  rank_.context.device.synchronize();
  computed_before_ = thread_seconds();
  exposed_before_ = to_ms(rank_.context.trace.exposed_wait());
}

void Trainer::between_steps(const std::function<void()>& work) {
  const double computed = thread_seconds(), exposed = to_ms(rank_.context.trace.exposed_wait());
  work();
  computed_before_ += thread_seconds() - computed;
  exposed_before_ += to_ms(rank_.context.trace.exposed_wait()) - exposed;
}

bool Trainer::evaluation_is_due() const {
  const int64_t every = config_.train.eval_every;
  return run_.validation != nullptr && every > 0 && (step_ >= place_.end_step() || step_ % every == 0);
}

bool Trainer::owes_evaluation() {
  if (run_.resume == nullptr || step_ <= place_.first_step || !evaluation_is_due()) return false;
  double missing = leads() && run_.folder != nullptr && !run_.folder->has_evaluation(step_) ? 1 : 0;
  sum_over_world(rank_, {&missing, 1});
  return missing > 0;
}

bool Trainer::asked_to_stop() {
  double asked = run_.stop_requested && run_.stop_requested() ? 1 : 0;
  sum_over_world(rank_, {&asked, 1});
  return asked > 0;
}

Trainer::~Trainer() = default;

WindowShare Trainer::share() const {
  return {config_.train.batch_windows, rank_.rings(), rank_.ring_index()};
}

void Trainer::say(const std::string& line) const {
  if (leads() && run_.say) run_.say(line);
}

void Trainer::start_prefetch() {
  const WindowShare windows = share();
  if (windows.per_step() == 0) return;
  const int64_t first_cursor = cursor_;
  prefetcher_ = std::make_unique<Prefetcher>(
      run_.windows, rank_.pieces(),
      [=, this](int64_t k) {
        return window_of(uint64_t(config_.run.seed), windows.cursor(k, first_cursor),
                         run_.windows.plan().window_count(), config_.data.order);
      },
      0, kPrefetchDepth);
}

StepWindows Trainer::next_windows() {
  const WindowPlan& plan = run_.windows.plan();
  int64_t scored_tokens = 0, tokens = 0;  // of all rings, so that the loss is one mean over the world
  for (int64_t i = 0; i < config_.train.batch_windows; ++i) {
    const int64_t window =
        window_of(uint64_t(config_.run.seed), cursor_ + i, plan.window_count(), config_.data.order);
    scored_tokens += run_.windows.label_count(window);
    tokens += plan.tokens(window).count;
  }
  return {share().per_step(), share().most_per_step(), scored_tokens, [this] { return &prefetcher_->next(); },
          tokens};
}

/// The gradient as always, on a device that recomputes random rows of each attention layer.
double Trainer::checked_gradient(StepWindows windows, const TrainStep::Losses& losses) {
  SpotCheck check(rank_.context.device, rank_.context.ring, rank_.context.trace, run_.gpt, rank_.layout,
                  {.seed = uint64_t(step_)});
  windows.next = [&check, this, next = windows.next] {
    const Batch* const batch = next();
    check.begin_window(mask_of(batch->window, config_.data.mask, config_.data.window));
    return batch;
  };
  const double squares = train_step_.accumulate(windows, check, losses);
  for (const Deviation& deviation : check.deviations()) {
    // A step whose numbers are not finite is the business of the guard that skips it.
    if (deviation.passed() || !std::isfinite(deviation.error)) continue;
    throw Error(fmt::format("verify at step {}: {} is off by {:.1e} of {:.0e} allowed, {}", step_ + 1,
                            deviation.quantity, deviation.error, deviation.tolerance, deviation.where),
                "the ring does not compute what one device computes; `ringlet verify` tells more");
  }
  if (check.rows_checked() > 0) {
    const std::string where = rank_.rings() > 1 ? fmt::format(" on the first of {} rings", rank_.rings()) : "";
    say(fmt::format("verify at step {}: {} rows of the real batch recomputed in double{}, worst {} {:.1e} of {:.0e} "
                    "allowed, {:.0f} ms",
                    step_ + 1, check.rows_checked(), where, check.worst().quantity, check.worst().error,
                    check.worst().tolerance, to_ms(check.cost())));
  }
  return squares;
}

MetricsRecord Trainer::train_step() {
  const auto start = std::chrono::steady_clock::now();
  Trace& trace = rank_.context.trace;
  if (prefetcher_ == nullptr) start_prefetch();
  const auto data_start = prefetcher_ ? prefetcher_->waited() : std::chrono::nanoseconds(0);
  trace.enter_step(step_ + 1, "step");
  const int64_t sent_before = traffic_.bytes();
  StepSums sums(rank_.layout.length, rank_.world.size());
  const StepWindows windows = next_windows();
  tokens_ += windows.tokens;
  const TrainStep::Losses add = [&](std::span<const float> losses, const Batch& batch) {
    add_losses(losses, batch, rank_.pieces(), sums.loss_by_position);
  };
  const int64_t verify_every = config_.run.verify;
  sums.gradient_squares = verify_every > 0 && (step_ + 1) % verify_every == 0
                              ? checked_gradient(windows, add)
                              : train_step_.accumulate(windows, rank_.context.device, add);
  sums.stop_requests = run_.stop_requested && run_.stop_requested();
  // From one all-reduce of these sums to the next: a step's length, the optimizer of the step before included.
  const double computed = thread_seconds(), exposed = to_ms(trace.exposed_wait());
  sums.ranks[rank_.world.rank()] = {
      1e3 * (computed - computed_before_), exposed - exposed_before_,
      prefetcher_ ? to_ms(prefetcher_->waited() - data_start) : 0.0,
      double(rank_.context.device.arena().peak_bytes()), double(traffic_.bytes() - sent_before)};
  computed_before_ = computed;
  exposed_before_ = exposed;
  trace.enter_phase("optimizer");
  const int64_t sent_by_gradients = traffic_.bytes();
  sums.reduce(rank_);
  step_ += 1;
  cursor_ += config_.train.batch_windows;
  stop_agreed_ = sums.stop_requests > 0;
  if (apply_update(sums)) {
    skipped_in_row_ = 0;
  } else {
    ++skipped_;
    ++skipped_in_row_;
  }
  // What follows the sums every rank sends alike.
  for (StepSums::Rank& rank : sums.ranks) rank.sent_bytes += double(traffic_.bytes() - sent_by_gradients);
  return record_of(sums, windows.tokens, seconds_since(start));
}

bool Trainer::apply_update(const StepSums& sums) {
  if (!sums.finite()) return false;  // decided from sums, so all ranks agree
  if (sums.loss_by_position.count() == 0) return true;  // nothing was asked: nothing is learned, and nothing decays
  ++updates_;
  const Config::Train& train = config_.train;
  train_step_.update(sums.gradient_squares, train.clip_norm,
                     {.learning_rate = float(rate()),
                      .beta1 = float(train.beta1),
                      .beta2 = float(train.beta2),
                      .epsilon = float(train.epsilon),
                      .weight_decay = float(train.weight_decay),
                      .gradient_scale = 1,
                      .step = updates_});
  return true;
}

MetricsRecord Trainer::record_of(const StepSums& sums, int64_t tokens, double seconds) const {
  MetricsRecord record;
  const PositionBins& bins = sums.loss_by_position;
  record.step = step_;
  record.steps = run_config().train.steps;
  if (run_.whole != nullptr) {
    record.stage = place_.number;
    record.seq_len = config_.run.seq_len;
    record.stage_end = place_.end_step();
  }
  record.loss = bins.mean();
  record.loss_first_quarter = bins.first_quarter();
  record.loss_last_quarter = bins.last_quarter();
  record.loss_by_position = bins.by_position();
  record.loss_by_distance = bins.by_distance();
  record.in_context_score = bins.in_context_score();
  record.learning_rate = rate();
  record.gradient_norm = std::sqrt(sums.gradient_squares);
  record.tokens = tokens_;
  record.step_ms = 1e3 * seconds;
  record.tokens_per_second = double(tokens) / seconds;
  record.skipped_steps = skipped_;
  for (const StepSums::Rank& rank : sums.ranks) {
    record.data_wait_ms = std::max(record.data_wait_ms, rank.data_wait_ms);
    if (config_.run.device == DeviceKind::cpu) record.compute_ms.push_back(rank.compute_ms);
    record.exposed_ms.push_back(rank.exposed_ms);
    record.bubble_percent.push_back(100 * rank.exposed_ms / record.step_ms);
    record.peak_bytes.push_back(int64_t(rank.peak_bytes));
    record.sent_bytes.push_back(int64_t(rank.sent_bytes));
  }
  return record;
}

RunEnd Trainer::run() {
  const int64_t every = config_.checkpoint.every;
  if (owes_evaluation()) between_steps([&] { evaluate_and_report(); });
  for (bool first = true; step_ < place_.end_step(); first = false) {
    const MetricsRecord record = train_step();
    if (leads() && run_.folder != nullptr) run_.folder->append_metrics(to_json_line(record));
    if (leads() && run_.report) run_.report(record);
    if (first) say(memory_table(rank_.context.device.arena()));
    if (skipped_in_row_ > 0) {
      say(fmt::format("step {} skipped: loss {} gradient norm {}; weights unchanged ({} in a row)", step_,
                      record.loss, record.gradient_norm, skipped_in_row_));
      if (skipped_in_row_ >= config_.train.max_skipped_steps) return RunEnd::diverged;
    }
    const bool last = step_ >= place_.end_step();
    const bool stop = stop_agreed_ && step_ < run_config().train.steps;
    // Saving comes first: who asks to stop may not wait for an evaluation.
    if (last || stop || (every > 0 && step_ % every == 0 && skipped_in_row_ == 0)) between_steps([&] { save(); });
    if (stop) return RunEnd::interrupted;
    if (!evaluation_is_due()) continue;
    bool asked = false;
    between_steps([&] {
      evaluate_and_report();
      asked = asked_to_stop();
    });
    if (last || !asked) continue;
    save();
    return RunEnd::interrupted;
  }
  return RunEnd::finished;
}

void Trainer::evaluate_and_report() {
  const int64_t windows = std::min(config_.train.eval_windows, run_.validation->plan().window_count());
  const auto [bins, answers] =
      evaluate(rank_, *run_.validation, windows, config_.data.mask, config_.data.window);
  if (!leads()) return;
  const std::string accuracy =
      answers ? fmt::format(", {:.2f} % of {} answers right", 100 * answers->answers().mean, answers->answers().count)
              : "";
  say(fmt::format("step {}: validation loss {:.4f}{}{}", step_, bins.mean(),
                  quarters_text(bins.mean(), bins.first_quarter(), bins.last_quarter(), 4), accuracy));
  if (run_.folder == nullptr) return;
  EvalRecord record{step_, bins, answers};
  if (run_.whole != nullptr) {
    record.stage = place_.number;
    record.seq_len = config_.run.seq_len;
  }
  run_.folder->append_metrics(to_json_line(record));
}

}  // namespace ringlet
