#pragma once

#include <functional>
#include <optional>
#include <span>
#include <string>

#include "data/corpus.h"
#include "train/checkpoint.h"
#include "train/config.h"
#include "train/run_folder.h"

namespace ringlet {

/// The newest whole checkpoint of a run, checked against the config and corpus that want to
/// continue it; where the folder leads, metrics of later steps are cut off, and older checkpoints than are to be kept
/// go. `say` gets what was skipped and why, and which settings have changed, in the stage that goes on and in those
/// that are over. Nothing where the run has no checkpoint at all yet. Throws Error where there are checkpoints but none
/// is whole, where model, tokenizer or corpus are not those of the checkpoint, and where its step would be at another
/// place in the stages.
std::optional<Checkpoint> checkpoint_to_resume(RunFolder& folder, const Config& config, const Corpus& corpus,
                                               const std::function<void(const std::string&)>& say);

/// The config with the memory settings that "auto" found when the run last began, for each stage,
/// so that the resumed run has the same bits; as it is where "auto" does not stand, the run has not
/// begun, or these settings no longer fit or obey it.
Config with_earlier_memory(const Config& config, const GptConfig& gpt);

/// The newest checkpoint of a run's folder whose weights are whole, or the checkpoint that the path itself is. Throws
/// Error.
Checkpoint checkpoint_of(const std::filesystem::path& run_or_checkpoint,
                         const std::function<void(const std::string&)>& say);

/// The config that the checkpoint was trained with, without stages: where the run has some, of the
/// one that it was in.
Config trained_config(const CheckpointInfo& info, std::span<const std::string> overrides = {});

}  // namespace ringlet
