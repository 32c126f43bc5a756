#include "train/plan/dry_run.h"

#include <algorithm>
#include <filesystem>

#include "data/corpus.h"
#include "kernels/comm/dry.h"
#include "kernels/dry/dry_backend.h"
#include "train/step_sums.h"
#include "train/train_step.h"
#include "train/window_share.h"

namespace ringlet {
namespace {

constexpr int64_t kArenaBytes = int64_t{1} << 54;  // addresses only

Batch made_up_batch(const DryRun& run, const SequenceLayout& layout, int rank) {
  Batch batch;
  batch.window.token_count = layout.length;
  batch.window.document_starts = run.mask.document_starts;
  batch.tokens.resize(size_t(layout.rows(rank)));
  for (size_t i = 0; i < batch.tokens.size(); ++i) {
    batch.tokens[i] = int32_t(int64_t(7 * i) % run.gpt.vocabulary);
  }
  batch.labels = batch.tokens;
  return batch;
}

/// A step of `windows` windows on a rank whose every part is dry, but the trainer's.
struct Rehearsal {
  Rehearsal(const DryRun& run, const SequenceLayout& layout, int world_rank, int64_t windows,
            const Rates* rates)
      : device(make_dry_backend(kArenaBytes, counts)),
        tape(std::make_unique<Tape>(rates, run.mask, trace, device->arena())) {
    const int ring_size = layout.ring_size();
    DryComm dry_world({world_rank, int(run.config.run.ranks)}, {}, traffic);
    DryComm dry_ring({world_rank % ring_size, ring_size}, {}, traffic);
    TapeComm world(dry_world, *tape, Tape::kWorld), ring(dry_ring, *tape, Tape::kRing);
    ObservedBackend observed(*device, *tape);
    rehearse_step(run, {observed, ring, trace}, world, layout, windows);
    moment = tape->peak_moment();
    if (run.config.train.eval_every > 0) evaluate(run, {*device, dry_ring, trace}, dry_world, layout);
  }

  /// Neither on the tape nor in the traffic: it is no part of a step, but may be the peak.
  void evaluate(const DryRun& run, RankContext context, Comm& world, const SequenceLayout& layout) {
    const Traffic trained = traffic;
    const int64_t peak_bytes = device->arena().peak_bytes();
    const StepSettings settings = run.config.step_settings();
    Parameters parameters(run.gpt, *device, world.size(), Parameters::Gradients::present);
    Gpt gpt(parameters);
    const ShardedAdamW optimizer(parameters, world);
    score({context, world, layout, settings, gpt}, made_up_batch(run, layout, context.ring.rank()), run.mask);
    traffic = trained;
    if (device->arena().peak_bytes() > peak_bytes) moment = {.phase = "evaluation"};
  }

  Trace trace;
  DryCounts counts;
  Traffic traffic;
  std::unique_ptr<Backend> device;
  std::unique_ptr<Tape> tape;
  PeakMoment moment;
};

/// first + (windows - 1) * (second - first).
template <class Number>
Number extended(Number first, Number second, int64_t windows) {
  return first + Number(windows - 1) * (second - first);
}

Traffic extended(const Traffic& first, const Traffic& second, int64_t windows) {
  Traffic result;
  for (const auto field : {&Traffic::exchange_bytes, &Traffic::all_reduce_bytes, &Traffic::reduce_scatter_bytes,
                           &Traffic::all_gather_bytes, &Traffic::broadcast_bytes, &Traffic::exchanges}) {
    result.*field = extended(first.*field, second.*field, windows);
  }
  return result;
}

}  // namespace

int64_t planned_vocabulary(const Config& config) {
  constexpr int64_t kByteVocabulary = 257;
  std::error_code ignored;
  return std::filesystem::exists(config.data.corpus, ignored) ? Corpus::open(config.data.corpus).vocabulary()
                                                              : kByteVocabulary;
}

void rehearse_step(const DryRun& run, RankContext context, Comm& world, const SequenceLayout& layout,
                   int64_t windows, const std::function<void(Parameters&)>& initialise) {
  const ArenaScope scope(context.device.arena());
  const StepSettings settings = run.config.step_settings();
  Parameters parameters(run.gpt, context.device, world.size(), Parameters::Gradients::present);
  if (initialise) initialise(parameters);
  Gpt gpt(parameters);
  const ModelRank rank{context, world, layout, settings, gpt};
  ShardedAdamW optimizer(parameters, world);
  TrainStep step(rank, parameters, optimizer, MaskRule::document, run.mask.window);
  const Batch batch = made_up_batch(run, layout, context.ring.rank());
  context.trace.enter_step(1, "step");
  step.accumulate({windows, layout.length, [&] { return batch; }}, context.device, [](auto, auto&) {});
  context.trace.enter_phase("optimizer");
  StepSums(layout.length, world.size()).reduce(rank);
  step.update(1, run.config.train.clip_norm,
              {.learning_rate = 0, .beta1 = 0.9f, .beta2 = 0.99f, .epsilon = 1e-8f, .weight_decay = 0,
               .gradient_scale = 1, .step = 1});
}

DryRank::DryRank(const DryRun& run, const SequenceLayout& layout, int world_rank, const Rates* rates) {
  const int ring_size = layout.ring_size();
  const int64_t rings = run.config.run.ranks / ring_size;
  const int64_t windows =
      WindowShare{run.config.train.batch_windows, rings, world_rank / ring_size}.per_step();
  Rehearsal first(run, layout, world_rank, std::min<int64_t>(windows, 1), rates);
  const Arena& arena = first.device->arena();
  step_ = {.rank = world_rank,
           .rows = layout.rows(world_rank % ring_size),
           .windows = windows,
           .peak_bytes = arena.peak_bytes(),
           .regions = arena.regions_at_peak(),
           .moment = first.moment,
           .traffic = first.traffic,
           .matmul_flops = first.tape->matmul_flops(),
           .attention_flops = first.tape->attention_flops()};
  if (windows > 1) {
    Rehearsal second(run, layout, world_rank, 2, rates);
    step_.traffic = extended(first.traffic, second.traffic, windows);
    step_.matmul_flops = extended(first.tape->matmul_flops(), second.tape->matmul_flops(), windows);
    step_.attention_flops =
        extended(first.tape->attention_flops(), second.tape->attention_flops(), windows);
    tapes_[1] = std::move(second.tape);
  }
  tapes_[0] = std::move(first.tape);
}

}  // namespace ringlet
