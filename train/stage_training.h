#pragma once

#include <functional>
#include <optional>
#include <span>
#include <vector>

#include "train/trainer.h"

namespace ringlet {

/// What one stage of a run is made of; of a run without stages, the run.
struct StageParts {
  Config config;  // without stages
  GptConfig gpt;
  WindowReader windows;
  std::optional<WindowReader> validation;  // where it is evaluated
};

/// Of every stage of the config. The corpora must outlive them. Throws Error that names the stage
/// for which one of them is too short.
std::vector<StageParts> parts_of_stages(const Config& config, const Corpus& corpus,
                                        const Corpus* validation);

/// "stage 2 of 3: T = 1024, rope base 4.2e+05, learning rate 0.001 to 0.0001 (cosine), 400k tokens
/// in 196 steps"
std::string stage_text(const Config& config, int64_t number);

/// One rank's part of stages that follow each other, to the last or until the run ends sooner. Each
/// begins in the state in which the one before has ended, which stays where it is, in the rank's
/// memory. Collective. ended: sees each stage and its trainer when that has run; may be absent.
RunEnd train_stages(std::span<const TrainingRun> stages, RankContext context, Comm& world,
                    const std::function<void(const TrainingRun&, const Trainer&)>& ended = {});

}  // namespace ringlet
