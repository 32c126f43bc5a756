#include "train/stage_training.h"

#include <fmt/format.h>

#include "train/console.h"

namespace ringlet {
namespace {

StageParts parts_of_stage(const Config& config, int64_t number, const Corpus& corpus,
                          const Corpus* validation) {
  const Config alone = stage_config(config, number);
  StageParts parts{
      alone, alone.gpt(corpus.vocabulary()), WindowReader(corpus, alone.run.seq_len), {}};
  if (validation != nullptr && alone.train.eval_every > 0)
    parts.validation.emplace(*validation, alone.run.seq_len);
  return parts;
}

/// Nothing where the stage begins with its first step.
std::string place_text(const StagePlace& place, int64_t steps_done) {
  if (steps_done <= place.first_step) return "";
  if (steps_done >= place.end_step()) return ", all trained";
  return fmt::format(", from its step {} on", steps_done - place.first_step + 1);
}

}  // namespace

std::vector<StageParts> parts_of_stages(const Config& config, const Corpus& corpus,
                                        const Corpus* validation) {
  std::vector<StageParts> parts;
  for (int64_t number = 1; number <= stage_count(config); ++number) {
    try {
      parts.push_back(parts_of_stage(config, number, corpus, validation));
    } catch (const Error& error) {
      if (config.stages.empty()) throw;
      throw Error(fmt::format("stage {}: {}", number, error.what()), error.advice);
    }
  }
  return parts;
}

std::string stage_text(const Config& config, int64_t number) {
  const Config alone = stage_config(config, number);
  const ScheduleSettings schedule = alone.schedule();
  const bool falls = schedule.shape != ScheduleShape::constant;
  const int64_t tokens = schedule.steps * alone.train.batch_windows * alone.run.seq_len;
  return fmt::format(
      "stage {} of {}: T = {}, rope base {:.4g}, learning rate {}{} ({}), {} tokens in {} step{}",
      number, stage_count(config), alone.run.seq_len, alone.model.rope_base, schedule.peak_rate,
      falls ? fmt::format(" to {}", schedule.final_rate) : "", name_of(schedule.shape),
      human_count(double(tokens)), schedule.steps, schedule.steps == 1 ? "" : "s");
}

RunEnd train_stages(std::span<const TrainingRun> stages, RankContext context, Comm& world,
                    const std::function<void(const TrainingRun&, const Trainer&)>& ended) {
  std::vector<SequenceLayout> layouts;
  for (const TrainingRun& stage : stages) layouts.push_back(stage.config.run.sequence_layout());
  std::unique_ptr<Trainer> trainer;
  RunEnd end = RunEnd::finished;
  for (size_t i = 0; i < stages.size() && end == RunEnd::finished; ++i) {
    const TrainingRun& stage = stages[i];
    trainer = trainer ? std::make_unique<Trainer>(stage, *trainer, layouts[i])
                      : std::make_unique<Trainer>(stage, context, world, layouts[i]);
    if (stage.whole != nullptr && stage.say && world.rank() == 0) {
      stage.say(stage_text(*stage.whole, stage.stage) +
                place_text(stage_place(*stage.whole, stage.stage), trainer->steps_done()));
    }
    end = trainer->run();
    if (ended) ended(stage, *trainer);
  }
  return end;
}

}  // namespace ringlet
