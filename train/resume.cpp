#include "train/resume.h"

#include <fmt/core.h>

#include <sstream>

#include "train/plan/plan.h"

namespace ringlet {
namespace {

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

void compare_configs(const std::string& saved, const std::string& current,
                     const std::function<void(const std::string&)>& say) {
  const auto before = settings_of(saved), now = settings_of(current);
  for (const auto& [key, value] : now) {
    for (const auto& [old_key, old_value] : before) {
      if (old_key != key || old_value == value) continue;
      if (key.starts_with("model.")) {
        throw Error(fmt::format("{} is {} in the config, but {} in the checkpoint", key, value, old_value),
                    "set it as in the checkpoint, or start another run (run.name)");
      }
      say(fmt::format("changed since the checkpoint: {} from {} to {}", key, old_value, value));
    }
  }
}

void say_skipped(const std::vector<Skipped>& skipped,
                 const std::function<void(const std::string&)>& say) {
  for (const Skipped& one : skipped) {
    say(fmt::format("skipped {}: {}", one.path.string(), one.reason));
  }
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
  compare_configs(info.config_toml, to_toml(config), say);
  if (info.corpus_fingerprint != corpus.fingerprint()) {
    throw Error("the corpus " + corpus.path() + " is not the one that the run was trained on",
                "give the run its corpus back, or start another run (run.name)");
  }
  if (folder.leads()) folder.cut_metrics(info.step);
  say(fmt::format("resuming {} (saved on {} rank{})", checkpoint->folder().string(), info.world,
                  info.world == 1 ? "" : "s"));
  return checkpoint;
}

Config with_earlier_memory(const Config& config, const GptConfig& gpt) {
  const std::filesystem::path file = config.run.path() / "config.toml";
  if (config.memory.recompute != Recompute::automatic || !std::filesystem::exists(file)) return config;
  Config same = config;
  const Config::Memory earlier = load_config(file).memory;
  same.memory.recompute = earlier.recompute;
  same.memory.head_chunk = earlier.head_chunk;
  same.memory.mlp_chunk = earlier.mlp_chunk;
  const bool obeys = earlier.recompute != Recompute::automatic && earlier.head_chunk <= config.memory.head_chunk &&
                     earlier.mlp_chunk <= config.memory.mlp_chunk;
  const DryRun run{same, gpt, Mask{{0}, config.data.window}};
  return obeys && double(peak_bytes(run)) <= budget_bytes(config) ? same : config;
}

Checkpoint checkpoint_of(const std::filesystem::path& run_or_checkpoint,
                         const std::function<void(const std::string&)>& say) {
  const std::filesystem::path checkpoints = run_or_checkpoint / "checkpoints";
  if (!std::filesystem::exists(checkpoints)) {
    if (std::filesystem::exists(run_or_checkpoint / "manifest.json")) {
      Checkpoint checkpoint = Checkpoint::open(run_or_checkpoint);
      checkpoint.verify();
      return checkpoint;
    }
    throw Error("'" + run_or_checkpoint.string() + "' is neither a run nor a checkpoint",
                "give a folder like runs/NAME, or runs/NAME/checkpoints/step_00000100");
  }
  std::vector<Skipped> skipped;
  std::optional<Checkpoint> checkpoint = newest_whole_checkpoint(checkpoints, skipped);
  say_skipped(skipped, say);
  if (!checkpoint) {
    throw Error(checkpoints.string() + " holds no whole checkpoint",
                "train for longer: one is saved every checkpoint.every steps and at the end");
  }
  return *checkpoint;
}

}  // namespace ringlet
