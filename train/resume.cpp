#include "train/resume.h"

#include <fmt/core.h>

#include <algorithm>
#include <sstream>

#include "train/config_keys.h"
#include "train/plan/memory_choice.h"
#include "train/plan/plan.h"
#include "train/stages.h"

namespace ringlet {
namespace {

using Say = std::function<void(const std::string&)>;

constexpr std::string_view kConfigOfCheckpoint = "config of the checkpoint";

/// "group.key = value" lines of a resolved config.
std::vector<std::pair<std::string, std::string>> settings_of(const std::string& toml) {
  std::vector<std::pair<std::string, std::string>> settings;
  std::istringstream lines(toml);
  std::string line, group;
  while (std::getline(lines, line)) {
    if (line.starts_with('[')) group = line.substr(1, line.size() - 2);
    const size_t equals = line.find(" = ");
    if (equals != std::string::npos) {
      settings.emplace_back(group + "." + line.substr(0, equals), line.substr(equals + 3));
    }
  }
  return settings;
}

struct Change {
  std::string key, old_value, value;
  std::string text() const { return fmt::format("{} from {} to {}", key, old_value, value); }
};

std::vector<Change> changes_of(const std::string& saved, const std::string& current) {
  const auto before = settings_of(saved), now = settings_of(current);
  std::vector<Change> changes;
  for (const auto& [key, value] : now) {
    for (const auto& [old_key, old_value] : before) {
      if (old_key == key && old_value != value) changes.push_back({key, old_value, value});
    }
  }
  return changes;
}

void compare_configs(const std::string& saved, const std::string& current, const Say& say) {
  for (const Change& change : changes_of(saved, current)) {
    if (change.key.starts_with("model.")) {
      throw Error(
          fmt::format("{} is {} in the config, but {} in the checkpoint", change.key, change.value, change.old_value),
          change.key == "model.rope_base"
              ? "\"auto\" goes by run.seq_len and data.window: set those, or the base itself, as in the checkpoint; "
                "or start another run (run.name)"
              : "set it as in the checkpoint, or start another run (run.name)");
    }
    say("changed since the checkpoint: " + change.text());
  }
}

/// What stages have of their own.
bool is_of_stage(const std::string& key) {
  Config::Stage stage;
  const std::vector<ConfigKey> keys = stage_keys_of(stage);
  return key == "train.steps" || std::ranges::find(keys, key, &ConfigKey::name) != keys.end();
}

/// A run may go on with other stages than it began with, but what it has behind it must be what the
/// config says.
void compare_stages(const CheckpointInfo& info, const Config& config, const Say& say) {
  const Config before = parse_config(info.config_toml, kConfigOfCheckpoint);
  const StagePlace was = stage_at(before, info.step), is = stage_at(config, info.step);
  if (was.number != is.number || was.first_step != is.first_step) {
    throw Error(fmt::format("the checkpoint's step {} is step {} of its stage {}, but step {} of "
                            "stage {} in the config",
                            info.step, info.step - was.first_step, was.number,
                            info.step - is.first_step, is.number),
                "give the stages up to there their tokens, seq_len and batch_windows back, or "
                "start another run (run.name)");
  }
  compare_configs(to_toml(stage_config(before, is.number)),
                  to_toml(stage_config(config, is.number)), say);
  for (int64_t over = 1; over < is.number; ++over) {
    for (const Change& change :
         changes_of(to_toml(stage_config(before, over)), to_toml(stage_config(config, over)))) {
      if (!is_of_stage(change.key)) continue;
      say(fmt::format(
          "changed since the checkpoint, in stage {}, which is over and stays as it was: {}", over,
          change.text()));
    }
  }
}

bool has_stages(const CheckpointInfo& info) {
  return info.config_toml.find("\n[[stage]]\n") != std::string::npos;
}

void say_skipped(const std::vector<Skipped>& skipped, const Say& say) {
  for (const Skipped& one : skipped) {
    say(fmt::format("skipped {}: {}", one.path.string(), one.reason));
  }
}

/// What "auto" found before, where that still fits and is asked for.
std::optional<Config::Memory> memory_as_before(const Config& config, const Config& earlier,
                                               const GptConfig& gpt) {
  Config same = config;
  same.memory.zero_stage = std::max(config.memory.zero_stage, earlier.memory.zero_stage);
  same.memory.recompute = earlier.memory.recompute;
  same.memory.head_chunk = earlier.memory.head_chunk;
  same.memory.mlp_chunk = earlier.memory.mlp_chunk;
  const bool obeys = earlier.memory.recompute != Recompute::automatic &&
                     earlier.memory.head_chunk <= config.memory.head_chunk &&
                     earlier.memory.mlp_chunk <= config.memory.mlp_chunk;
  const DryRun run{same, gpt, Mask{{0}, config.data.window}};
  if (!obeys || !(double(peak_bytes(run)) <= budget_bytes(config))) return {};
  return same.memory;
}

}  // namespace

std::optional<Checkpoint> checkpoint_to_resume(RunFolder& folder, const Config& config, const Corpus& corpus,
                                               const std::function<void(const std::string&)>& say) {
  std::vector<Skipped> skipped;
  std::optional<Checkpoint> checkpoint = newest_whole_checkpoint(folder.checkpoints(), skipped);
  say_skipped(skipped, say);
  if (!checkpoint) {
    if (has_checkpoints(folder.checkpoints())) {
      throw Error(folder.checkpoints().string() + " holds no whole checkpoint",
                  "bring one back from a backup, or start another run (run.name)");
    }
    say("nothing to resume yet: starting from step 0");
    if (folder.leads()) folder.cut_metrics(0);
    return {};
  }
  const CheckpointInfo& info = checkpoint->info();
  if (info.tokenizer_hash != corpus.tokenizer_hash()) {
    throw Error(fmt::format("the checkpoint's tokenizer is {}, the corpus' is {}", info.tokenizer_name,
                            corpus.tokenizer_name()),
                "use a corpus prepared with the checkpoint's tokenizer, or start another run (run.name)");
  }
  check_fits(info, parameter_shapes(config.gpt(corpus.vocabulary())));
  if (config.stages.empty() && !has_stages(info)) {
    compare_configs(info.config_toml, to_toml(config), say);
  } else {
    compare_stages(info, config, say);
  }
  if (info.corpus_fingerprint != corpus.fingerprint()) {
    throw Error("the corpus " + corpus.path() + " is not the one that the run was trained on",
                "give the run its corpus back, or start another run (run.name)");
  }
  if (folder.leads()) {
    // A full disk may be why fewer are kept now: the next save needs the room.
    remove_old_checkpoints(folder.checkpoints(), info.step, int(config.checkpoint.keep));
    folder.cut_metrics(info.step);
  }
  say(fmt::format("resuming {} (saved on {} rank{})", checkpoint->folder().string(), info.world,
                  info.world == 1 ? "" : "s"));
  return checkpoint;
}

Config with_earlier_memory(const Config& config, const GptConfig& gpt) {
  const std::filesystem::path file = config.run.path() / "config.toml";
  if (!std::filesystem::exists(file) || !chooses_memory(config)) return config;
  const Config earlier = load_config(file);
  Config same = config;
  for (int64_t number = 1; number <= std::min(stage_count(config), stage_count(earlier));
       ++number) {
    const Config alone = stage_config(config, number);
    if (alone.memory.recompute != Recompute::automatic) continue;
    Config before = stage_config(earlier, number);
    // "auto" has not raised it of a run with stages, and has nobody to share with on one rank.
    if (!config.stages.empty() || config.run.ranks == 1) before.memory.zero_stage = 1;
    if (const auto memory = memory_as_before(alone, before, gpt)) set_memory(same, number, *memory);
  }
  return same;
}

Config trained_config(const CheckpointInfo& info, std::span<const std::string> overrides) {
  if (!has_stages(info)) return parse_config(info.config_toml, kConfigOfCheckpoint, overrides);
  const Config run = parse_config(info.config_toml, kConfigOfCheckpoint);
  return parse_config(to_toml(stage_config(run, stage_at(run, info.step).number)),
                      kConfigOfCheckpoint, overrides);
}

Checkpoint checkpoint_of(const std::filesystem::path& run_or_checkpoint,
                         const std::function<void(const std::string&)>& say) {
  const std::filesystem::path checkpoints = run_or_checkpoint / "checkpoints";
  if (!std::filesystem::exists(checkpoints)) {
    if (std::filesystem::exists(run_or_checkpoint / "manifest.json")) {
      Checkpoint checkpoint = Checkpoint::open(run_or_checkpoint, CheckpointPart::weights);
      checkpoint.verify(CheckpointPart::weights);
      return checkpoint;
    }
    throw Error("'" + run_or_checkpoint.string() + "' is neither a run nor a checkpoint",
                "give a folder like runs/NAME, or runs/NAME/checkpoints/step_00000100");
  }
  std::vector<Skipped> skipped;
  std::optional<Checkpoint> checkpoint = newest_whole_checkpoint(checkpoints, skipped, CheckpointPart::weights);
  // A run that goes on beside this may take one away while it is read: another has come in its place.
  const auto is_gone = [](const Skipped& one) { return !std::filesystem::exists(one.path); };
  for (int tries = 0; tries < 10 && !checkpoint && std::ranges::any_of(skipped, is_gone); ++tries) {
    skipped.clear();
    checkpoint = newest_whole_checkpoint(checkpoints, skipped, CheckpointPart::weights);
  }
  const bool none_saved = skipped.empty();
  std::erase_if(skipped, is_gone);
  say_skipped(skipped, say);
  if (!checkpoint) {
    throw Error(checkpoints.string() + " holds no whole checkpoint",
                none_saved ? "train for longer: one is saved every checkpoint.every steps and at the end"
                           : "all that were saved are damaged: train anew, under another run.name");
  }
  return *checkpoint;
}

}  // namespace ringlet
