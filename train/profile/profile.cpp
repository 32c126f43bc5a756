#include "train/profile/profile.h"

#include "train/trainer.h"
#include "train/world.h"

namespace ringlet {

Profile record_profile(const Config& config, const GptConfig& gpt, const WindowReader& windows, const ProfileSteps& steps,
                       const std::function<bool()>& stop_requested) {
  CHECK(steps.measured >= 1 && steps.warmup >= 1, steps.measured, " steps after ", steps.warmup);
  const SequenceLayout layout = config.run.sequence_layout();
  const TrainingRun run{config, gpt, windows, nullptr, nullptr, nullptr, {}, {}, {}, stop_requested, {}, {}};
  std::vector<std::unique_ptr<RankRecorder>> recorders(static_cast<size_t>(config.run.ranks));
  TransferLogs logs;
  Profile profile;
  const int64_t growth = (steps.measured + steps.warmup - 1) / steps.warmup;
  const auto rank_main = [&](RankContext context, Comm& world) {
    auto& recorder = recorders[size_t(world.rank())];
    const std::unique_ptr<WorkClock> clock = context.device.make_work_clock();
    recorder = std::make_unique<RankRecorder>(context.trace, context.device.arena(), clock.get());
    ObservedBackend device(context.device, *recorder);
    RecordingComm recorded_ring(context.ring, *recorder), recorded_world(world, *recorder);
    Trainer trainer(run, {device, recorded_ring, context.trace, context.offload}, recorded_world, layout);
    recorder->restart(1);
    const auto train_step = [&] {
      recorder->begin_step(trainer.steps_done() + 1);
      MetricsRecord record = trainer.train_step();
      recorder->end_step();
      return record;
    };
    for (int64_t i = 0; i < steps.warmup && !trainer.stop_agreed(); ++i) train_step();
    recorder->restart(growth);
    world.barrier();  // nothing travels until all have come to the next one
    if (world.rank() == 0) logs.restart(growth);
    world.barrier();
    for (int64_t i = 0; i < steps.measured && !trainer.stop_agreed(); ++i) {
      MetricsRecord record = train_step();
      if (world.rank() == 0) profile.records.push_back(std::move(record));
    }
    if (world.rank() == 0) profile.stopped = trainer.stop_agreed();
  };
  run_world(config, rank_main, [&]() -> TransferObserver& { return logs.add(); });
  if (profile.stopped) return profile;
  profile.recording = make_recording(recorders, logs, int(config.run.ring_size()));
  return profile;
}

}  // namespace ringlet
