#include "train/plan/tune.h"

#include <algorithm>
#include <map>
#include <mutex>

#include "train/plan/memory_choice.h"
#include "train/quantile.h"
#include "train/window_share.h"
#include "train/world.h"

namespace ringlet {
namespace {

constexpr int64_t kLongestTuned = int64_t{1} << 31;
constexpr int kMeasuredSteps = 3;
constexpr size_t kMostMeasured = 4;
constexpr double kWorthMorePieces = 1.01;

std::vector<int64_t> divisors_of(int64_t number) {
  std::vector<int64_t> divisors;
  for (int64_t i = number; i >= 1; --i) {
    if (number % i == 0) divisors.push_back(i);
  }
  return divisors;
}

bool is_hidden(const TunedSetting& setting) { return setting.fits && setting.bubble_percent < kHiddenPercent; }

class Tuner {
 public:
  Tuner(const Config& config, const GptConfig& gpt, const Rates& rates, double budget_bytes, int threads_per_rank, int cores)
      : config_(config), gpt_(gpt), rates_(rates), budget_bytes_(budget_bytes), threads_(threads_per_rank), cores_(cores) {}

  std::vector<TunedSetting> run() {
    add(config_);
    for (const Config& split : splits(config_)) add(split);
    for (const Config& split : splits(config_)) add_pieces(split);
    for (const Config& fewer : fewer_kv_heads()) add(fewer);
    const auto found = [&] {
      return std::ranges::any_of(settings_, [](const TunedSetting& setting) {
        return is_hidden(setting) && setting.change < Change::model;
      });
    };
    Config longer = config_;
    for (bool fits = true; fits && !found() && longer.run.seq_len <= kLongestTuned / 2;) {
      longer.run.seq_len *= 2;
      const size_t before = settings_.size();
      add(longer);
      for (const Config& split : splits(longer)) add(split);
      fits = std::any_of(settings_.begin() + std::ptrdiff_t(before), settings_.end(),
                         [](const TunedSetting& setting) { return setting.fits; });
    }
    std::ranges::stable_sort(settings_, std::greater{}, &TunedSetting::tokens_per_second);  // 0 of those that do not fit
    return std::move(settings_);
  }

 private:
  /// Every ring and layout of the config's ranks; a ring of one has no layouts.
  static std::vector<Config> splits(const Config& config) {
    std::vector<Config> result;
    const int64_t ranks = config.run.ranks;
    for (const int64_t ring : divisors_of(ranks)) {
      for (const Layout layout : {Layout::zigzag, Layout::contiguous, Layout::striped}) {
        if (ring == 1 && layout != config.run.layout) continue;
        Config split = config;
        if (ring != config.run.ring_size()) split.run.ring = ring;
        split.run.layout = layout;
        const int64_t rings = ranks / ring;
        split.train.batch_windows = (config.train.batch_windows + rings - 1) / rings * rings;
        result.push_back(split);
      }
    }
    return result;
  }

  /// The same with blocks in more pieces, as long as that makes it faster.
  void add_pieces(const Config& split) {
    if (split.run.ring_size() == 1) return;
    TunedSetting fastest = add(split);
    for (const int64_t pieces : {4, 8, 16}) {
      Config more = split;
      more.run.pieces = pieces;
      if (more.run.sequence_layout().most_pieces() <= fastest.pieces) continue;
      const TunedSetting setting = planned(more);
      if (!setting.fits || setting.tokens_per_second < kWorthMorePieces * fastest.tokens_per_second) return;
      settings_.push_back(fastest = setting);
    }
  }

  std::vector<Config> fewer_kv_heads() const {
    std::vector<Config> result;
    for (const Config& split : splits(config_)) {
      if (split.run.layout != config_.run.layout || split.run.ring_size() == 1) continue;
      for (const int64_t kv_heads : divisors_of(gpt_.heads.heads)) {
        if (kv_heads >= gpt_.heads.kv_heads) continue;
        result.push_back(split);
        result.back().model.kv_heads = kv_heads;
      }
    }
    return result;
  }

  const TunedSetting& add(const Config& config) {
    const auto [place, is_new] = seen_.try_emplace(changed_settings(config_, config), settings_.size());
    if (is_new) settings_.push_back(planned(config));
    return settings_[place->second];
  }

  TunedSetting planned(const Config& config) const {
    TunedSetting setting{.config = config, .gpt = gpt_, .set = changed_settings(config_, config)};
    setting.gpt.heads.kv_heads = config.model.kv_heads;
    setting.change = config.model.kv_heads != config_.model.kv_heads             ? Change::model
                     : config.run.seq_len != config_.run.seq_len                 ? Change::context
                     : config.train.batch_windows != config_.train.batch_windows ? Change::batch
                                                                                 : Change::nothing;
    choose_memory(setting);
    const DryRun run{setting.config, setting.gpt, Mask{{0}, config.data.window}};
    const Plan plan = setting.fits ? make_plan(run, &rates_, threads_, cores_) : make_plan(run);
    setting.peak_bytes = plan.fullest().peak_bytes;
    setting.rows = plan.fullest().rows;
    setting.pieces = setting.config.run.sequence_layout().most_pieces();
    if (setting.fits) {
      setting.sent_bytes = plan.most_sent_bytes();
      setting.step_seconds = plan.step_seconds;
      setting.tokens_per_second = double(plan.tokens_per_step) / plan.step_seconds;
      setting.bubble_percent = plan.bubble_percent();
    }
    return setting;
  }

  /// The config's own where it fits; cheaper on memory where it does not. The policy and chunks that "auto" finds by itself
  /// need no --set.
  void choose_memory(TunedSetting& setting) const {
    Config& config = setting.config;
    const bool automatic = config.memory.recompute == Recompute::automatic;
    const DryRun run{config, setting.gpt, Mask{{0}, config.data.window}};
    setting.fits = !automatic && double(peak_bytes(run)) <= budget_bytes_;
    if (setting.fits) return;
    const std::optional<Config::Memory> memory = cheapest_memory(run, budget_bytes_);
    setting.fits = memory.has_value();
    config.memory = memory ? *memory : smallest_memory(run);
    if (!memory) return;
    Config told = config;
    if (automatic) {
      told.memory = config_.memory;
      told.memory.zero_stage = memory->zero_stage;
    }
    setting.set = changed_settings(config_, told);
  }

  const Config& config_;
  const GptConfig& gpt_;
  const Rates& rates_;
  double budget_bytes_;
  int threads_, cores_;
  std::vector<TunedSetting> settings_;
  std::map<std::vector<std::string>, size_t> seen_;  // in settings_, by what differs from the config
};

}  // namespace

const TunedSetting* Tuning::first_hidden() const {
  const TunedSetting* first = nullptr;
  const auto intrusion = [](const TunedSetting& setting) { return std::pair(setting.change, setting.set.size()); };
  for (const TunedSetting& setting : settings) {  // the fastest first
    if (is_hidden(setting) && (first == nullptr || intrusion(setting) < intrusion(*first))) first = &setting;
  }
  return first;
}

Tuning tune(const Config& config, const GptConfig& gpt, const Rates& rates, double budget_bytes, int threads_per_rank,
            int cores) {
  return {Tuner(config, gpt, rates, budget_bytes, threads_per_rank, cores).run(), budget_bytes};
}

MeasuredSteps measure_steps(const TunedSetting& setting) {
  const Config& config = setting.config;
  const DryRun run{config, setting.gpt, Mask{{0}, config.data.window}};
  const SequenceLayout layout = config.run.sequence_layout();
  const int64_t rings = config.run.ranks / config.run.ring_size();
  MeasuredSteps measured;
  std::mutex mutex;
  run_world(config, [&](RankContext context, Comm& world) {
    using Clock = std::chrono::steady_clock;
    std::vector<double> steps, exposed;
    Clock::time_point began;
    std::chrono::nanoseconds waited{0};
    const auto again = [&] {
      context.device.synchronize();
      const Clock::time_point now = Clock::now();
      if (began != Clock::time_point{}) {
        steps.push_back(std::chrono::duration<double>(now - began).count());
        exposed.push_back(std::chrono::duration<double>(context.trace.exposed_wait() - waited).count());
      }
      began = now;
      waited = context.trace.exposed_wait();
      return std::ssize(steps) < kMeasuredSteps;
    };
    const WindowShare share{config.train.batch_windows, rings, world.rank() / config.run.ring_size()};
    rehearse_step(run, context, world, layout, RehearsedWindows{share.per_step(), share.most_per_step()},
                  [](Parameters& parameters) { parameters.initialise(1); }, again);
    const std::lock_guard lock(mutex);
    measured.step_seconds = std::max(measured.step_seconds, median(steps));
    measured.bubble_percent += 100 * median(exposed) / median(steps) / double(config.run.ranks);
    measured.peak_bytes = std::max(measured.peak_bytes, context.device.arena().peak_bytes());
  });
  return measured;
}

std::vector<const TunedSetting*> settings_to_measure(const Tuning& tuning) {
  std::vector<const TunedSetting*> chosen;
  if (const TunedSetting* hidden = tuning.first_hidden()) chosen.push_back(hidden);
  for (const TunedSetting& setting : tuning.settings) {
    if (chosen.size() == kMostMeasured || !setting.fits) break;
    if (!chosen.empty() && chosen.front() == &setting) continue;
    chosen.push_back(&setting);
  }
  return chosen;
}

}  // namespace ringlet
