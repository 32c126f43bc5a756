#include <fmt/format.h>
#include <toml++/toml.h>

#include <algorithm>
#include <charconv>
#include <fstream>
#include <sstream>

#include "kernels/check.h"
#include "train/config.h"
#include "train/config_keys.h"
#include "train/config_resolve.h"

namespace ringlet {
namespace {

constexpr int64_t kLargestFile = 1 << 20;
constexpr std::string_view kStage = "stage", kStagePrefix = "stage.";

[[noreturn]] void refuse(std::string_view place, std::string_view why, const std::string& advice) {
  throw UsageError(fmt::format("{}: {}", place, why), advice);
}

[[noreturn]] void refuse_unknown(std::string_view place, std::string_view name) {
  const std::string near = nearest_key(name);
  refuse(place, fmt::format("unknown key '{}'", name),
         near.empty()     ? "configs/reference.toml lists every key"
         : near == kStage ? "did you mean [[stage]]?"
                          : fmt::format("did you mean '{}'?", near));
}

[[noreturn]] void refuse_unknown_of_stage(std::string_view place, std::string_view name,
                                          const std::string& group) {
  const std::string near = nearest_stage_key(name.substr(group.size()));
  Config::Stage stage;
  std::vector<std::string_view> known;
  for (const ConfigKey& key : stage_keys_of(stage)) known.push_back(key_of_stage(key.name));
  refuse(place, fmt::format("unknown key '{}'", name),
         near.empty() ? fmt::format("a stage may set {}", fmt::join(known, ", "))
                      : fmt::format("did you mean '{}{}'?", group, near));
}

std::string_view type_name(const toml::node& node) {
  switch (node.type()) {
    case toml::node_type::table:
      return "a table";
    case toml::node_type::array:
      return "an array";
    case toml::node_type::string:
      return "a text";
    case toml::node_type::integer:
      return "an integer";
    case toml::node_type::floating_point:
      return "a number with a fraction";
    case toml::node_type::boolean:
      return "true or false";
    default:
      return "a date or time";
  }
}

/// One value on its way from the file or the command line to the place of its key.
struct Setter {
  std::string_view place, name;
  const toml::node& node;

  [[noreturn]] void refuse_type(std::string_view wanted) const {
    refuse(place, fmt::format("{} must be {}, not {}", name, wanted, type_name(node)),
           "configs/reference.toml shows every key with its type");
  }
  template <class Number>
  Number in_range(Number value, Number lowest, Number highest) const {
    if (value >= lowest && value <= highest) return value;
    refuse_value(fmt::format("{}", value), lowest, highest, value > highest);
  }
  template <class Number>
  [[noreturn]] void refuse_value(std::string_view value, Number lowest, Number highest, bool too_large) const {
    const bool bounded = double(highest) < 1e12;  // beyond, only int64 and double themselves end
    refuse(place, fmt::format("{} = {} cannot be", name, value),
           bounded || too_large ? fmt::format("choose a value from {} to {}", lowest, highest)
                                : fmt::format("choose a value of at least {}", lowest));
  }

  void operator()(const IntegerKey& key) const {
    // --set takes for a text what is no integer of 64 bits.
    const auto text = node.value<std::string>();
    if (text && text->size() > 18 && text->find_first_not_of("0123456789") == text->npos) {
      refuse_value(*text, key.lowest, key.highest, true);
    }
    if (!node.is_integer()) refuse_type("an integer");
    *key.value = in_range(node.as_integer()->get(), key.lowest, key.highest);
  }
  void operator()(const IntegerOrWordKey& key) const {
    for (size_t i = 0; i < key.words.size(); ++i) {
      if (node.value<std::string>() != std::string(key.words[i])) continue;
      *key.value = -int64_t(i);
      return;
    }
    if (!node.is_integer()) {
      refuse_type(fmt::format("an integer or one of: {}", fmt::join(key.words, ", ")));
    }
    *key.value = in_range(node.as_integer()->get(), key.lowest, key.highest);
  }
  void operator()(const NumberKey& key) const {
    if (!key.word_for_unset.empty() &&
        node.value<std::string>() == std::string(key.word_for_unset)) {
      *key.value = double(Config::kUnset);
      return;
    }
    if (!node.is_number()) {
      refuse_type(key.word_for_unset.empty()
                      ? std::string("a number")
                      : fmt::format("a number or \"{}\"", key.word_for_unset));
    }
    *key.value = in_range(*node.value<double>(), key.lowest, key.highest);
  }
  void operator()(const FlagKey& key) const {
    if (!node.is_boolean()) refuse_type("true or false");
    *key.value = node.as_boolean()->get();
  }
  void operator()(const TextKey& key) const {
    if (!node.is_string()) refuse_type("a text in quotes");
    *key.value = node.as_string()->get();
  }
  void operator()(const ChoiceKey& key) const {
    if (!node.is_string()) refuse_type("a word in quotes");
    const std::string& word = node.as_string()->get();
    for (size_t i = 0; i < key.words.size(); ++i) {
      if (word != key.words[i]) continue;
      *key.value = uint8_t(i);
      return;
    }
    refuse(place, fmt::format("{} = \"{}\" cannot be", name, word),
           fmt::format("choose one of: {}", fmt::join(key.words, ", ")));
  }
};

const ConfigKey* find_key(const std::vector<ConfigKey>& keys, std::string_view name) {
  for (const ConfigKey& key : keys) {
    if (key.name == name) return &key;
  }
  return nullptr;
}

const ConfigKey* find_stage_key(const std::vector<ConfigKey>& keys, std::string_view name) {
  for (const ConfigKey& key : keys) {
    if (key_of_stage(key.name) == name) return &key;
  }
  return nullptr;
}

bool is_group(const std::vector<ConfigKey>& keys, std::string_view name) {
  for (const ConfigKey& key : keys) {
    if (key.name.substr(0, key.name.find('.')) == name) return true;
  }
  return false;
}

std::string place_of(std::string_view source, const toml::source_region& region) {
  return fmt::format("{}:{}", source, region.begin.line);
}

void set_from_table(const toml::table& table, std::string_view source, const std::string& prefix,
                    const std::vector<ConfigKey>& keys) {
  for (const auto& [key, node] : table) {
    const std::string name = prefix + std::string(key.str());
    if (name == kStage) continue;  // read last: stages begin with all the rest
    if (node.is_table() && prefix.empty() && is_group(keys, name)) {
      set_from_table(*node.as_table(), source, name + ".", keys);
      continue;
    }
    const ConfigKey* known = find_key(keys, name);
    // A group that does not exist is reported by its first key, which can be near a known one.
    if (known == nullptr && node.is_table() && !node.as_table()->empty()) {
      set_from_table(*node.as_table(), source, name + ".", keys);
    }
    const std::string place = place_of(source, key.source());
    if (known == nullptr) refuse_unknown(place, name);
    std::visit(Setter{place, name, node}, known->value);
  }
}

toml::table parse_toml(std::string_view text, std::string_view source) {
  try {
    return toml::parse(text);
  } catch (const toml::parse_error& error) {
    refuse(place_of(source, error.source()), error.description(),
           "correct that line; configs/reference.toml shows how a config is written");
  }
}

/// The [[stage]] tables of a file.
std::vector<const toml::table*> stage_tables(const toml::table& file, std::string_view source) {
  const toml::node* const node = file.get(kStage);
  if (node == nullptr) return {};
  if (!node->is_array_of_tables()) {
    refuse(place_of(source, node->source()), "stage must be tables in double brackets",
           "write [[stage]] above the values of each stage");
  }
  if (const toml::node* const steps = file["train"]["steps"].node()) {
    refuse(place_of(source, steps->source()), "train.steps cannot be beside [[stage]]",
           "leave it out: stages last as long as their tokens");
  }
  std::vector<const toml::table*> tables;
  for (const toml::node& one : *node->as_array()) tables.push_back(one.as_table());
  return tables;
}

/// "key=value" from the command line; a text needs no quotes there.
struct Override {
  explicit Override(const std::string& setting) : place("--set " + setting) {
    const size_t equals = setting.find('=');
    if (equals == std::string::npos)
      refuse(place, "there is no '='", "write it as in --set model.width=256");
    name = setting.substr(0, equals);
    value = setting.substr(equals + 1);
  }
  bool is_of_stage() const { return name.starts_with(kStagePrefix); }

  void give_to(const ConfigKey& key) const {
    toml::table parsed;
    try {
      parsed = toml::parse("value = " + value);
    } catch (const toml::parse_error&) {
      parsed.clear();
    }
    // What is not TOML, or more than one value, or no text where one is due, is the text itself.
    const bool wants_text = std::holds_alternative<TextKey>(key.value);
    if (parsed.size() != 1 || (wants_text && !parsed.begin()->second.is_string())) {
      parsed = toml::table{{"value", value}};
    }
    std::visit(Setter{place, name, parsed.begin()->second}, key.value);
  }

  std::string place, name, value;
};

/// Which of the stages an override is for, and the key there: "stage.2.seq_len" is 1 and "seq_len".
std::pair<size_t, std::string> stage_of(const Override& setting, size_t stage_count) {
  const size_t dot = setting.name.find('.', kStagePrefix.size());
  const std::string number = setting.name.substr(kStagePrefix.size(), dot - kStagePrefix.size());
  size_t index = 0;
  const auto [end, error] = std::from_chars(number.data(), number.data() + number.size(), index);
  if (dot == std::string::npos || error != std::errc() || end != number.data() + number.size()) {
    refuse(setting.place, fmt::format("unknown key '{}'", setting.name),
           "write it as in --set stage.1.seq_len=1024");
  }
  if (index < 1 || index > stage_count) {
    refuse(setting.place, fmt::format("there is no stage {}", number),
           stage_count == 0 ? "the config has no [[stage]]; it can only be given some in the file"
                            : fmt::format("choose one from 1 to {}, or add a [[stage]] to the file",
                                          stage_count));
  }
  return {index - 1, setting.name.substr(dot + 1)};
}

/// What the stages say themselves, each begun with the values of the rest of the config.
void set_stages(Config& config, const std::vector<const toml::table*>& tables,
                std::string_view source, std::span<const Override> overrides) {
  config.stages.resize(tables.size());
  for (size_t i = 0; i < tables.size(); ++i) {
    Config::Stage& stage = config.stages[i];
    const std::vector<ConfigKey> keys = stage_keys_of(stage);
    const std::string prefix = fmt::format("{}{}.", kStagePrefix, i + 1);
    copy_values(keys_of(config), keys);
    for (const auto& [key, node] : *tables[i]) {
      const std::string place = place_of(source, key.source()),
                        name = prefix + std::string(key.str());
      const ConfigKey* const known = find_stage_key(keys, key.str());
      if (known == nullptr) refuse_unknown_of_stage(place, name, prefix);
      std::visit(Setter{place, name, node}, known->value);
    }
    for (const Override& setting : overrides) {
      if (!setting.is_of_stage()) continue;
      const auto [index, key] = stage_of(setting, tables.size());
      if (index != i) continue;
      const ConfigKey* const known = find_stage_key(keys, key);
      if (known == nullptr) refuse_unknown_of_stage(setting.place, setting.name, prefix);
      setting.give_to(*known);
    }
    if (stage.tokens == Config::kUnset) {
      refuse(place_of(source, tables[i]->source()), fmt::format("stage {} has no tokens", i + 1),
             "say how long it lasts, as in tokens = 1_000_000");
    }
  }
}

/// A setting that no stage heeds is a mistake, not a wish.
void check_heeded(const Override& setting, const std::vector<const toml::table*>& tables) {
  if (tables.empty()) return;
  if (setting.name == "train.steps") {
    refuse(setting.place, "train.steps cannot be beside [[stage]]",
           "set a stage's tokens, as in --set stage.1.tokens=1000000");
  }
  Config::Stage stage;
  const std::vector<ConfigKey> keys = stage_keys_of(stage);
  const ConfigKey* const key = find_key(keys, setting.name);
  if (key == nullptr) return;
  const std::string own(key_of_stage(key->name));
  if (!std::ranges::all_of(tables, [&](const toml::table* table) { return table->contains(own); }))
    return;
  refuse(setting.place, fmt::format("every [[stage]] says its own {}", own),
         fmt::format("set it there, as in --set stage.1.{}={}", own, setting.value));
}

std::string read_config_file(const std::filesystem::path& file) {
  std::error_code failure;
  const std::string advice = "give the path of a config, such as configs/quickstart.toml";
  if (!std::filesystem::is_regular_file(file, failure)) {
    throw UsageError(fmt::format("{} is not a file", file.string()), advice);
  }
  if (int64_t(std::filesystem::file_size(file, failure)) > kLargestFile) {
    throw UsageError(fmt::format("{} is too large for a config", file.string()), advice);
  }
  std::ifstream stream(file, std::ios::binary);
  std::ostringstream text;
  if (!(text << stream.rdbuf())) {
    throw UsageError(fmt::format("{} cannot be read, or is empty", file.string()), advice);
  }
  return text.str();
}

Config parse(std::string_view text, std::string_view source, const std::string& run_name,
             std::span<const std::string> settings) {
  Config config;
  config.run.name = run_name;
  const std::vector<ConfigKey> keys = keys_of(config);
  const toml::table file = parse_toml(text, source);
  set_from_table(file, source, "", keys);
  const std::vector<const toml::table*> stages = stage_tables(file, source);
  std::vector<Override> overrides;
  for (const std::string& setting : settings) {
    const Override& added = overrides.emplace_back(setting);
    if (added.is_of_stage()) {
      stage_of(added, stages.size());
      continue;
    }
    const ConfigKey* const known = find_key(keys, added.name);
    if (known == nullptr) refuse_unknown(added.place, added.name);
    check_heeded(added, stages);
    added.give_to(*known);
  }
  set_stages(config, stages, source, overrides);
  try {
    fill_unset(config);
    check_config(config);
  } catch (const UsageError& error) {
    refuse(source, error.what(), error.advice);
  }
  return config;
}

}  // namespace

Config parse_config(std::string_view text, std::string_view source,
                    std::span<const std::string> overrides) {
  return parse(text, source, "run", overrides);
}

Config load_config(const std::filesystem::path& file, std::span<const std::string> overrides) {
  return parse(read_config_file(file), file.string(), file.stem().string(), overrides);
}

}  // namespace ringlet
