#include "train/plan/dry_run.h"

#include <algorithm>
#include <filesystem>

#include "data/corpus.h"
#include "kernels/comm/dry.h"
#include "kernels/cpu/bf16_storage.h"
#include "kernels/dry/dry_backend.h"
#include "train/step_sums.h"
#include "train/window_share.h"

namespace ringlet {
namespace {

constexpr int64_t kDryBytes = int64_t{1} << 54;  // addresses only

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

/// The processor computes bf16 in f32, with room for the operands.
std::unique_ptr<Backend> dry_device(const DryRun& run) {
  std::unique_ptr<Backend> device = make_dry_backend(kDryBytes);
  if (run.config.run.device != DeviceKind::cpu) return device;
  return make_bf16_storage(std::move(device), Widening::counted);
}

/// A step of these windows on a rank whose every part is dry, but the trainer's.
struct Rehearsal {
  Rehearsal(const DryRun& run, const SequenceLayout& layout, int world_rank, RehearsedWindows windows,
            const Rates* rates)
      : mask(run.mask),
        device(dry_device(run)),
        tape(std::make_unique<Tape>(rates, mask, trace, device->arena())),
        offload(*tape) {
    const int ring_size = layout.ring_size();
    DryComm dry_world({world_rank, int(run.config.run.ranks)}, traffic);
    DryComm dry_ring({world_rank % ring_size, ring_size}, traffic);
    TapeComm world(dry_world, *tape, Tape::kWorld), ring(dry_ring, *tape, Tape::kRing);
    ObservedBackend observed(*device, *tape);
    const bool offloads = !run.config.memory.offload.empty();
    rehearse_step(run, {observed, ring, trace, offloads ? &offload : nullptr}, world, layout,
                  windows_of(run, layout, world_rank, windows));
    moment = tape->peak_moment();
    if (run.config.train.eval_every > 0) evaluate(run, {*device, dry_ring, trace}, dry_world, layout);
  }

  /// The tape counts the pairs of the window in hand.
  StepWindows windows_of(const DryRun& run, const SequenceLayout& layout, int world_rank, RehearsedWindows count) {
    const int ring_size = layout.ring_size();
    const int64_t rings = run.config.run.ranks / ring_size;
    const auto next = [&, batch = made_up_batch(run, layout, world_rank % ring_size),
                       place = int64_t(world_rank / ring_size), rings]() mutable -> const Batch* {
      if (run.windows.empty()) return &batch;
      batch.window = run.windows[size_t(place)];
      mask = mask_of(batch.window, MaskRule::document, run.mask.window);
      place += rings;
      return &batch;
    };
    return {count.own, count.most, layout.length, next};
  }

  /// Neither on the tape nor in the traffic: it is no part of a step, but may be the peak.
  void evaluate(const DryRun& run, RankContext context, Comm& world, const SequenceLayout& layout) {
    const Traffic trained = traffic;
    const int64_t peak_bytes = device->arena().peak_bytes();
    const StepSettings settings = run.config.step_settings();
    Parameters parameters(run.gpt, *device, {world.rank(), world.size()}, run.config.gradients());
    Gpt gpt(parameters);
    const ShardedAdamW optimizer(parameters, world);
    score({context, world, layout, settings, gpt}, made_up_batch(run, layout, context.ring.rank()), run.mask);
    traffic = trained;
    if (device->arena().peak_bytes() > peak_bytes) moment = {.phase = "evaluation"};
  }

  Mask mask;
  Trace trace;
  Traffic traffic;
  std::unique_ptr<Backend> device;
  std::unique_ptr<Tape> tape;
  TapeOffload offload;
  PeakMoment moment;
};

/// sum += times * (more - less).
void add_difference(Traffic& sum, int64_t times, const Traffic& more, const Traffic& less) {
  for (const auto field : {&Traffic::exchange_bytes, &Traffic::all_reduce_bytes, &Traffic::reduce_scatter_bytes,
                           &Traffic::all_gather_bytes, &Traffic::broadcast_bytes, &Traffic::exchanges}) {
    sum.*field += times * (more.*field - less.*field);
  }
}

}  // namespace

int64_t planned_vocabulary(const Config& config) {
  constexpr int64_t kByteVocabulary = 257;
  std::error_code ignored;
  return std::filesystem::exists(config.data.corpus, ignored) ? Corpus::open(config.data.corpus).vocabulary()
                                                              : kByteVocabulary;
}

void rehearse_step(const DryRun& run, RankContext context, Comm& world, const SequenceLayout& layout,
                   const StepWindows& windows, const std::function<void(Parameters&)>& initialise,
                   const std::function<bool()>& again) {
  const ArenaScope scope(context.device.arena());
  const StepSettings settings = run.config.step_settings();
  Parameters parameters(run.gpt, context.device, {world.rank(), world.size()}, run.config.gradients());
  if (initialise) initialise(parameters);
  Gpt gpt(parameters);
  const ModelRank rank{context, world, layout, settings, gpt};
  ShardedAdamW optimizer(parameters, world);
  TrainStep step(rank, parameters, optimizer, MaskRule::document, run.mask.window);
  do {
    context.trace.enter_step(1, "step");
    step.accumulate(windows, context.device, [](auto, auto&) {});
    context.trace.enter_phase("optimizer");
    StepSums(layout.length, world.size()).reduce(rank);
    step.update(1, run.config.train.clip_norm,
                {.learning_rate = 0, .beta1 = 0.9f, .beta2 = 0.99f, .epsilon = 1e-8f, .weight_decay = 0,
                 .gradient_scale = 1, .step = 1});
  } while (again && again());
}

void rehearse_step(const DryRun& run, RankContext context, Comm& world, const SequenceLayout& layout,
                   RehearsedWindows windows, const std::function<void(Parameters&)>& initialise,
                   const std::function<bool()>& again) {
  const Batch batch = made_up_batch(run, layout, context.ring.rank());
  rehearse_step(run, context, world, layout, {windows.own, windows.most, layout.length, [&] { return &batch; }},
                initialise, again);
}

int64_t dry_peak_bytes(const DryRun& run, const SequenceLayout& layout, int world_rank) {
  const int ring_size = layout.ring_size();
  const WindowShare share{run.config.train.batch_windows, run.config.run.ranks / ring_size, world_rank / ring_size};
  const Rehearsal one(run, layout, world_rank, {std::min<int64_t>(share.per_step(), 1), 1}, nullptr);
  return one.device->arena().peak_bytes();
}

DryRank::DryRank(const DryRun& run, const SequenceLayout& layout, int world_rank, const Rates* rates) {
  const int ring_size = layout.ring_size();
  const int64_t rings = run.config.run.ranks / ring_size;
  const WindowShare share{run.config.train.batch_windows, rings, world_rank / ring_size};
  const int64_t windows = share.per_step(), most = share.most_per_step();
  const bool alike = run.windows.empty();
  const RehearsedWindows one{std::min<int64_t>(windows, 1), 1};
  Rehearsal first(run, layout, world_rank, alike ? one : RehearsedWindows{windows, most}, rates);
  const Arena& arena = first.device->arena();
  step_ = {.rank = world_rank,
           .rows = layout.rows(world_rank % ring_size),
           .windows = windows,
           .peak_bytes = arena.peak_bytes(),
           .regions = arena.regions_at_peak(),
           .moment = first.moment,
           .traffic = first.traffic,
           .offloaded_bytes = first.offload.bytes(),
           .matmul_flops = first.tape->matmul_flops(),
           .attention_flops = first.tape->attention_flops()};
  if (most > 1 && alike) {
    Rehearsal second(run, layout, world_rank, {std::min<int64_t>(windows, 2), 2}, rates);
    const int64_t more = std::max<int64_t>(windows - 1, 0);
    add_difference(step_.traffic, more, second.traffic, first.traffic);
    step_.offloaded_bytes += more * (second.offload.bytes() - first.offload.bytes());
    step_.matmul_flops += double(more) * (second.tape->matmul_flops() - first.tape->matmul_flops());
    step_.attention_flops += double(more) * (second.tape->attention_flops() - first.tape->attention_flops());
    if (most > windows) {  // it joins the last sums without a window
      const Rehearsal joined(run, layout, world_rank, {1, 2}, nullptr);
      add_difference(step_.traffic, 1, joined.traffic, first.traffic);
    }
    tapes_[1] = std::move(second.tape);
  }
  tapes_[0] = std::move(first.tape);
}

}  // namespace ringlet
