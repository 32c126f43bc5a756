#include "train/plan/plan.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <set>

#include "train/window_share.h"

namespace ringlet {
namespace {

constexpr int64_t kGrain = 1024;
constexpr int64_t kLongest = int64_t{1} << 31;
constexpr int64_t kSlopeGrains = 64;  // where the slope of memory in T is taken

/// Tokens that a rank trains in a step.
double tokens_of(const Config& config, const SequenceLayout& layout, int rank) {
  const int ring_size = layout.ring_size();
  const WindowShare share{config.train.batch_windows, config.run.ranks / ring_size, rank / ring_size};
  return double(layout.rows(rank % ring_size)) * double(share.per_step());
}

/// Ranks that differ in what they hold, and the first, middle and last of a ring.
std::vector<int> kinds_of_ranks(const Config& config, const SequenceLayout& layout) {
  const int ring_size = layout.ring_size(), world = int(config.run.ranks);
  std::set<int> ranks{0, ring_size / 2, ring_size - 1};
  std::set<std::pair<int64_t, double>> seen;
  for (int rank = 0; rank < world; ++rank) {
    if (seen.insert({layout.rows(rank % ring_size), tokens_of(config, layout, rank)}).second) ranks.insert(rank);
  }
  return {ranks.begin(), ranks.end()};
}

StepFlops flops_of(const DryRun& run, const SequenceLayout& layout, const Plan& plan) {
  const GptConfig& gpt = run.gpt;
  const double length = double(run.config.run.seq_len), windows = double(run.config.train.batch_windows);
  double matrix_parameters = gpt.tied_head ? 0 : -double(gpt.vocabulary * gpt.width);  // the embedding is looked up
  for (const ParameterShape& shape : parameter_shapes(gpt)) {
    if (shape.shape.size() == 2) matrix_parameters += double(shape.size());
  }
  const Piece whole{0, 1, 0, run.config.run.seq_len};
  double tokens = double(plan.tokens_per_step), pairs = 0;
  if (run.windows.empty()) pairs = windows * double(visible_pairs(run.mask, whole, whole));
  for (const Window& window : run.windows) {
    const Piece used{0, 1, 0, window.token_count};
    pairs += double(visible_pairs(mask_of(window, MaskRule::document, run.mask.window), used, used));
  }
  const double attention = 12.0 * double(gpt.layers * gpt.heads.q_width());
  StepFlops flops;
  flops.model = 6 * matrix_parameters * tokens + attention * pairs;
  flops.palm = 6 * matrix_parameters * tokens + attention * windows * length * length;
  double executed = 0, of_ranks = 0;
  for (const DryStep& rank : plan.ranks) {
    executed += rank.matmul_flops + rank.attention_flops;
    of_ranks += tokens_of(run.config, layout, rank.rank);
  }
  // Of a large world: what some ranks do for their tokens, all do for all.
  flops.executed = of_ranks > 0 ? executed * length * windows / of_ranks : 0;
  return flops;
}

/// As one rank has it, for all.
Plan plan_of_rank(const DryRun& run, int rank) {
  Plan plan;
  plan.every_rank = false;
  plan.tokens_per_step = run.config.run.seq_len * run.config.train.batch_windows;
  const SequenceLayout layout = run.config.run.sequence_layout();
  plan.ranks.push_back(DryRank(run, layout, rank).step());
  plan.flops = flops_of(run, layout, plan);
  return plan;
}

}  // namespace

const DryStep& Plan::fullest() const { return *std::ranges::max_element(ranks, {}, &DryStep::peak_bytes); }

int64_t Plan::most_sent_bytes() const {
  return std::ranges::max_element(ranks, {}, [](const DryStep& rank) { return rank.traffic.bytes(); })->traffic.bytes();
}

double Plan::bubble_percent() const {
  double exposed = 0;
  for (const RankTime& time : times) exposed += time.exposed_seconds;
  return step_seconds > 0 ? 100 * exposed / (step_seconds * double(times.size())) : 0;
}

Plan make_plan(const DryRun& run, const Rates* rates, int threads_per_rank, int cores) {
  const Config& config = run.config;
  const SequenceLayout layout = config.run.sequence_layout();
  Plan plan;
  plan.every_rank = config.run.ranks <= kEveryRank;
  plan.tokens_per_step = config.run.seq_len * config.train.batch_windows;
  if (!run.windows.empty()) {
    CHECK(std::ssize(run.windows) == config.train.batch_windows, run.windows.size(), " windows are no step");
    plan.tokens_per_step = 0;
    for (const Window& window : run.windows) plan.tokens_per_step += window.token_count;
  }
  std::vector<int> chosen = kinds_of_ranks(config, layout);
  if (plan.every_rank) {
    chosen.resize(size_t(config.run.ranks));
    for (size_t i = 0; i < chosen.size(); ++i) chosen[i] = int(i);
  }
  std::vector<DryRank> dry;
  for (const int rank : chosen) {
    dry.emplace_back(run, layout, rank, rates);
    plan.ranks.push_back(dry.back().step());
  }
  plan.flops = flops_of(run, layout, plan);
  if (rates == nullptr) return plan;

  if (plan.every_rank) {
    plan.timed_ranks = chosen;
  } else {
    const auto work = [](const DryStep& step) { return step.attention_flops + step.matmul_flops; };
    const auto busiest = std::ranges::max_element(plan.ranks, {}, work);
    plan.timed_ranks = {busiest->rank};
    std::swap(dry.front(), dry[size_t(busiest - plan.ranks.begin())]);
    dry.erase(dry.begin() + 1, dry.end());
  }
  const double threads = double(config.run.ranks * threads_per_rank);
  Replay replay{.tapes = {}, .world_size = int(config.run.ranks), .ring_size = layout.ring_size(), .link = rates->link,
                .slowdown = cores > 0 ? std::max(1.0, threads / cores) : 1.0,
                .copies_take_cores = config.run.device == DeviceKind::cpu && cores > 0 && threads >= cores};
  const auto play_windows = [&](int64_t windows) {
    replay.tapes.clear();
    for (const DryRank& rank : dry) replay.tapes.push_back(&rank.tape(windows));
    return play(replay);
  };
  plan.times = play_windows(1);
  const int64_t windows = std::ranges::max_element(plan.ranks, {}, &DryStep::windows)->windows;
  if (windows > 1 && run.windows.empty()) {
    const std::vector<RankTime> second = play_windows(2);
    for (size_t i = 0; i < plan.times.size(); ++i) extend(plan.times[i], second[i], windows);
  }
  for (const RankTime& time : plan.times) plan.step_seconds = std::max(plan.step_seconds, time.end_seconds);
  return plan;
}

int64_t peak_bytes(const DryRun& run) {
  const SequenceLayout layout = run.config.run.sequence_layout();
  int64_t peak = 0;
  for (const int rank : kinds_of_ranks(run.config, layout)) {
    peak = std::max(peak, dry_peak_bytes(run, layout, rank));
  }
  return peak;
}

int64_t longest_context(const DryRun& run, double budget_bytes) {
  Config config = run.config;
  const auto peak_at = [&](int64_t grains) {
    config.run.seq_len = grains * kGrain;
    return double(peak_bytes({config, run.gpt, run.mask}));
  };
  const auto fits = [&](int64_t grains) { return peak_at(grains) <= budget_bytes; };
  if (!fits(1)) return 0;
  int64_t good = 1, bad = kLongest / kGrain + 1;
  // Memory is nearly a line in T: a guess from its slope, then steps round it that double.
  const double first = peak_at(kSlopeGrains), second = peak_at(2 * kSlopeGrains);
  const double slope = std::max(1.0, (second - first) / double(kSlopeGrains));
  int64_t guess = std::clamp(int64_t(double(kSlopeGrains) + (budget_bytes - first) / slope), good + 1, bad - 1);
  for (int64_t step = 1; bad - good > 1; step *= 2) {
    (fits(guess) ? good : bad) = guess;
    const int64_t beside = good == guess ? guess + step : guess - step;
    guess = beside > good && beside < bad ? beside : good + (bad - good) / 2;
  }
  return good * kGrain;
}

namespace {

/// Plans of a config with one setting changed.
class KnobList {
 public:
  KnobList(const DryRun& run, const Plan& plan, double budget_bytes) : run_(run), plan_(plan), budget_bytes_(budget_bytes) {}

  void add(std::string name, const std::function<void(Config&, GptConfig&)>& change) {
    Config config = run_.config;
    GptConfig gpt = run_.gpt;
    change(config, gpt);
    const DryRun changed{config, gpt, run_.mask};
    const Plan now = plan_.every_rank ? make_plan(changed) : plan_of_rank(changed, plan_.fullest().rank);
    Knob knob{std::move(name), now.fullest().peak_bytes, now.flops.executed};
    knob.sent_bytes = now.most_sent_bytes();
    if (budget_bytes_ > 0) knob.longest_context = longest_context(changed, budget_bytes_);
    knobs.push_back(std::move(knob));
  }
  std::vector<Knob> knobs;

 private:
  const DryRun& run_;
  const Plan& plan_;
  const double budget_bytes_;
};

void add_memory_knobs(KnobList& list, const Config& config) {
  const Config::Memory& memory = config.memory;
  for (const Recompute policy : {Recompute::none, Recompute::selective, Recompute::full}) {
    if (policy == memory.recompute) continue;
    list.add(fmt::format("recompute {}", name_of(policy)), [&](Config& to, GptConfig&) { to.memory.recompute = policy; });
  }
  if (memory.offload.empty()) {
    const bool on_gpus = config.run.device == DeviceKind::cuda;
    list.add(on_gpus ? "offload to the host" : "offload to a file",
             [&](Config& to, GptConfig&) { to.memory.offload = on_gpus ? Config::Memory::kHost : "a folder"; });
  }
  const int64_t stage = 3 - memory.zero_stage;
  list.add(fmt::format("ZeRO-{}", stage), [&](Config& to, GptConfig&) { to.memory.zero_stage = stage; });
  for (const auto& [name, chunk] : {std::pair{"head chunk", &Config::Memory::head_chunk},
                                    std::pair{"mlp chunk", &Config::Memory::mlp_chunk}}) {
    for (const int64_t tokens : {std::max<int64_t>(1, memory.*chunk / 4), memory.*chunk * 4}) {
      list.add(fmt::format("{} {}", name, tokens), [&](Config& to, GptConfig&) { to.memory.*chunk = tokens; });
    }
  }
}

void add_run_knobs(KnobList& list, const DryRun& run) {
  const Config::Run& now = run.config.run;
  if (now.ranks <= kEveryRank / 2) {
    list.add(fmt::format("ring {} on {} ranks", 2 * now.ring_size(), 2 * now.ranks), [&](Config& to, GptConfig&) {
      to.run.ranks = 2 * now.ranks;
      to.run.ring = 2 * now.ring_size();
    });
  }
  const Dtype other = run.gpt.dtype == Dtype::bf16 ? Dtype::f32 : Dtype::bf16;
  list.add(fmt::format("dtype {}", name_of(other)), [&](Config&, GptConfig& to) { to.dtype = other; });
  const int64_t kv_heads = run.gpt.heads.kv_heads;
  if (kv_heads % 2 == 0) {
    list.add(fmt::format("{} KV heads (another model)", kv_heads / 2),
             [&](Config&, GptConfig& to) { to.heads.kv_heads = kv_heads / 2; });
  }
}

}  // namespace

std::vector<Knob> knobs_of(const DryRun& run, const Plan& plan, double budget_bytes) {
  KnobList list(run, plan, budget_bytes);
  list.add("as configured", [](Config&, GptConfig&) {});
  add_memory_knobs(list, run.config);
  add_run_knobs(list, run);
  return std::move(list.knobs);
}

HideThreshold hide_threshold(const GptConfig& gpt, const Rates& rates, int64_t rows) {
  const HeadShape& shape = gpt.heads;
  // a c^2 = latency + b c, in seconds, for the positive c.
  const auto solve = [&](Op op, double flops, int64_t token_bytes) {
    const int64_t piece = std::max<int64_t>(1, rows / 2);
    const double seconds_per_flop = rates.seconds(op, {piece, piece, shape.head_dim}, 1);
    const double a = flops * double(shape.q_width()) * seconds_per_flop;
    const double b = double(token_bytes) / rates.link.bytes_per_second;
    return (b + std::sqrt(b * b + 4 * a * rates.link.latency_seconds)) / (2 * a);
  };
  const int64_t forward = gpt.kv_token_bytes();
  return {solve(Op::attention_forward, 2, forward),
          solve(Op::attention_backward, 5, forward + gpt.kv_gradient_token_bytes())};
}

}  // namespace ringlet
