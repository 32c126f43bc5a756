#include "train/config.h"

#include <fmt/format.h>

#include <algorithm>

#include "kernels/check.h"
#include "train/config_keys.h"
#include "train/config_resolve.h"
#include "train/stages.h"
#include "train/units.h"

namespace ringlet {
namespace {

constexpr int64_t kDefaultWarmupSteps = 20;
constexpr std::string_view kStepsKey = "train.steps";

void require(bool possible, const std::string& cause, const std::string& advice) {
  if (!possible) throw UsageError(cause, advice);
}

void check_run(const Config& config) {
  const Config::Run& run = config.run;
  require(!run.name.empty() && run.name.find('/') == std::string::npos && run.name != "." && run.name != "..",
          fmt::format("run.name = \"{}\" cannot name a folder", run.name),
          "choose a name, without '/'; run.folder says where the folder stands");
  require(run.ranks % run.ring_size() == 0,
          fmt::format("run.ring = {} does not divide run.ranks = {}", run.ring_size(), run.ranks),
          "choose a ring that divides the ranks, or 0 for a ring of all ranks");
}

void check_link(const Config::Run& run) {
  if (!run.link.empty()) parse_link(run.link);
}

void check_window(const Config::Data& data) {
  require(data.window != 1, "data.window = 1 lets a token see nothing but itself",
          "choose 2 or more, or 0 for all that comes before it");
}

void check_offload(const Config& config) {
  const std::string& offload = config.memory.offload;
  if (config.run.device == DeviceKind::cuda) {
    require(offload.empty() || offload == Config::Memory::kHost,
            fmt::format("memory.offload = \"{}\" cannot be with run.device = \"cuda\"", offload),
            "choose \"host\", memory of the host, or \"\" to keep block inputs on the GPU");
  } else {
    require(offload != Config::Memory::kHost, "memory.offload = \"host\" is for run.device = \"cuda\"",
            "name a folder on a fast disk (one called host as \"./host\"), or \"\" to keep block inputs in memory");
  }
}

void check_address(const Config::Run& run) {
  const size_t colon = run.address.rfind(':');
  const bool has_both = colon != std::string::npos && colon > 0 && colon + 1 < run.address.size();
  require(run.address.empty() || has_both, fmt::format("run.address = \"{}\" is not host:port", run.address),
          "write it as in \"node07:29400\", or leave it empty: the launcher's");
}

void check_train(const Config::Train& train) {
  require(train.warmup_steps <= train.steps,
          fmt::format("train.warmup_steps = {} is more than train.steps = {}", train.warmup_steps,
                      train.steps),
          fmt::format("choose train.warmup_steps from 0 to {}", train.steps));
  require(
      train.schedule != ScheduleShape::wsd || train.warmup_steps + train.decay_steps <= train.steps,
      fmt::format("train.warmup_steps = {} and train.decay_steps = {} do not fit into "
                  "train.steps = {}",
                  train.warmup_steps, train.decay_steps, train.steps),
      "make one of the two shorter");
  require(train.final_learning_rate <= train.learning_rate,
          fmt::format("train.final_learning_rate = {} is more than train.learning_rate = {}",
                      train.final_learning_rate, train.learning_rate),
          "choose a final rate that is not above the peak");
}

double resolved_rope_base(const Config& config) {
  GptConfig shape = config.gpt(1);
  shape.rope_base = GptConfig{}.rope_base;
  shape.validate();
  const int64_t length = config.run.seq_len, window = config.data.window;
  return auto_rope_base(shape.heads.head_dim, window > 0 ? std::min(window, length) : length);
}

std::string toml_string(std::string_view text) {
  std::string result = "\"";
  for (const char letter : text) {
    if (letter == '"' || letter == '\\') {
      result += '\\';
      result += letter;
    } else if (static_cast<unsigned char>(letter) < 0x20 || letter == 0x7f) {
      result += fmt::format("\\u{:04X}", int(letter));
    } else {
      result += letter;
    }
  }
  return result + '"';
}

struct Writer {
  std::string operator()(const IntegerKey& key) const { return fmt::format("{}", *key.value); }
  std::string operator()(const IntegerOrWordKey& key) const {
    return *key.value > 0 ? fmt::format("{}", *key.value) : toml_string(key.words[size_t(-*key.value)]);
  }
  std::string operator()(const NumberKey& key) const {
    if (!key.word_for_unset.empty() && *key.value == Config::kUnset)
      return toml_string(key.word_for_unset);
    return fmt::format("{}", *key.value);  // the shortest text that reads back to the same bits
  }
  std::string operator()(const FlagKey& key) const { return *key.value ? "true" : "false"; }
  std::string operator()(const TextKey& key) const { return toml_string(*key.value); }
  std::string operator()(const ChoiceKey& key) const { return toml_string(key.words[*key.value]); }
};

/// What body() throws, with the stage that it is about.
template <class Body>
void in_stage(int64_t number, Body body) {
  try {
    body();
  } catch (const UsageError& error) {
    throw UsageError(fmt::format("stage {}: {}", number, error.what()), error.advice);
  }
}

/// Each stage's unset values follow from its own and the config's.
void fill_stages(Config& config) {
  if (config.stages.empty()) return;
  config.train.steps = 0;
  for (int64_t number = 1; number <= stage_count(config); ++number) {
    Config::Stage& stage = config.stages[size_t(number - 1)];
    in_stage(number, [&] {
      Config alone = stage_config(config, number);
      fill_unset(alone);
      copy_values(keys_of(alone), stage_keys_of(stage));
    });
    config.train.steps += stage.steps();
  }
}

std::string shell_value(const ConfigKey& key) {
  const std::string value = std::visit(Writer{}, key.value);
  return value.starts_with('"') ? value.substr(1, value.size() - 2)
                                : value;  // a shell takes quotes away as well
}

}  // namespace

void fill_unset(Config& config) {
  fill_stages(config);
  Config::Model& model = config.model;
  if (model.kv_heads == Config::kUnset) model.kv_heads = model.heads;
  if (model.head_dim == Config::kUnset) {
    require(
        model.width % model.heads == 0,
        fmt::format("model.heads = {} does not divide model.width = {}", model.heads, model.width),
        "choose a width that is a multiple of the heads, or set model.head_dim");
    model.head_dim = model.width / model.heads;
  }
  if (model.mlp_width == Config::kUnset) {
    model.mlp_width = (model.width * 8 + 3 * 32 - 1) / (3 * 32) * 32;
  }
  if (model.rope_base == Config::kUnset) model.rope_base = resolved_rope_base(config);
  Config::Train& train = config.train;
  if (train.final_learning_rate == Config::kUnsetRate) {
    train.final_learning_rate = train.learning_rate / 10;
  }
  // Half of a very short training, so that a quick try needs no second setting.
  if (train.warmup_steps < 0) train.warmup_steps = std::min(kDefaultWarmupSteps, train.steps / 2);
  if (train.decay_steps == Config::kUnset) {
    train.decay_steps = std::max<int64_t>(1, train.steps / 5);
  }
}

void check_config(const Config& config) {
  // The vocabulary comes from the corpus later; any will do here.
  config.gpt(1).validate();
  check_run(config);
  check_link(config.run);
  check_window(config.data);
  check_offload(config);
  check_address(config.run);
  if (config.stages.empty()) check_train(config.train);
  require(config.train.eval_every == 0 || !config.data.validation.empty(),
          fmt::format("train.eval_every = {} needs a validation corpus", config.train.eval_every),
          "set data.validation, or train.eval_every to 0");
  for (int64_t number = 1; number <= std::ssize(config.stages); ++number) {
    in_stage(number, [&] { check_config(stage_config(config, number)); });
  }
}

std::string to_toml(const Config& config) {
  Config copy = config;
  std::string text, group;
  for (const ConfigKey& key : keys_of(copy)) {
    if (key.name == kStepsKey && !config.stages.empty()) continue;  // the stages tell
    const size_t dot = key.name.find('.');
    if (key.name.substr(0, dot) != group) {
      group = key.name.substr(0, dot);
      text += fmt::format("{}[{}]\n", text.empty() ? "" : "\n", group);
    }
    text += fmt::format("{} = {}\n", key.name.substr(dot + 1), std::visit(Writer{}, key.value));
  }
  for (Config::Stage& stage : copy.stages) {
    text += "\n[[stage]]\n";
    for (const ConfigKey& key : stage_keys_of(stage)) {
      text += fmt::format("{} = {}\n", key_of_stage(key.name), std::visit(Writer{}, key.value));
    }
  }
  return text;
}

std::vector<std::string> changed_settings(const Config& from, const Config& to) {
  CHECK(from.stages.size() == to.stages.size(), from.stages.size(), " and ", to.stages.size(),
        " stages");
  Config before = from, after = to;
  std::vector<std::string> changed;
  const auto compare = [&](const std::vector<ConfigKey>& old_keys,
                           const std::vector<ConfigKey>& new_keys, auto name_of_key) {
    for (size_t i = 0; i < new_keys.size(); ++i) {
      const std::string value = shell_value(new_keys[i]);
      if (value != shell_value(old_keys[i]))
        changed.push_back(fmt::format("{}={}", name_of_key(new_keys[i]), value));
    }
  };
  compare(keys_of(before), keys_of(after),
          [](const ConfigKey& key) { return std::string(key.name); });
  if (!to.stages.empty())
    std::erase_if(changed, [](const std::string& one) { return one.starts_with(kStepsKey); });
  for (size_t i = 0; i < to.stages.size(); ++i) {
    compare(stage_keys_of(before.stages[i]), stage_keys_of(after.stages[i]),
            [&](const ConfigKey& key) {
              return fmt::format("stage.{}.{}", i + 1, key_of_stage(key.name));
            });
  }
  return changed;
}

ScheduleSettings Config::schedule() const {
  return {train.schedule, train.learning_rate, train.final_learning_rate,
          train.steps,    train.warmup_steps,  train.decay_steps};
}

StepSettings Config::step_settings() const {
  return {memory.recompute, memory.head_chunk, memory.mlp_chunk};
}

Parameters::Gradients Config::gradients() const {
  return memory.zero_stage == 2 ? Parameters::Gradients::in_turns : Parameters::Gradients::present;
}

GptConfig Config::gpt(int64_t vocabulary) const {
  GptConfig result;
  result.vocabulary = vocabulary;
  result.layers = model.layers;
  result.width = model.width;
  result.heads = {model.heads, model.kv_heads, model.head_dim};
  result.mlp_width = model.mlp_width;
  result.tied_head = model.tied_head;
  result.qk_norm = model.qk_norm;
  result.norm_epsilon = float(model.norm_epsilon);
  result.rope_base = model.rope_base;
  result.dtype = run.dtype == ComputeDtype::bf16 ? Dtype::bf16 : Dtype::f32;
  return result;
}

}  // namespace ringlet
