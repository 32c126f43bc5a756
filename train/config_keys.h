#pragma once

#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "train/config.h"

namespace ringlet {

struct IntegerKey {
  int64_t* value;
  int64_t lowest, highest;
};
/// An integer, or one of some words: word i stands for -i.
struct IntegerOrWordKey {
  int64_t* value;
  int64_t lowest, highest;
  std::span<const std::string_view> words;
};
struct NumberKey {
  double* value;
  double lowest, highest;
  std::string_view word_for_unset = {};  // the word that stands for Config::kUnset, if there is one
};
struct FlagKey {
  bool* value;
};
struct TextKey {
  std::string* value;
};
/// An enumeration of uint8_t whose values 0, 1, ... have these words.
struct ChoiceKey {
  uint8_t* value;
  std::span<const std::string_view> words;
};

/// One key of the config file: "group.name", and where its value stands.
struct ConfigKey {
  std::string_view name;
  std::variant<IntegerKey, IntegerOrWordKey, NumberKey, FlagKey, TextKey, ChoiceKey> value;
};

/// Every key that there is, in the order of the file: the only list of them. The pointers go into
/// `config`.
std::vector<ConfigKey> keys_of(Config& config);

/// Every key that a stage may have values of its own for, under the config's names for them, and
/// first "tokens". In a
/// [[stage]] they stand without their group: key_of_stage().
std::vector<ConfigKey> stage_keys_of(Config::Stage& stage);

/// "seq_len" of "run.seq_len".
std::string_view key_of_stage(std::string_view name);

/// Gives each key of `to` that `from` has too the value that it has there.
void copy_values(const std::vector<ConfigKey>& from, const std::vector<ConfigKey>& to);

/// The known key, or "stage", that `name` was probably meant to be; empty when none is near.
std::string nearest_key(std::string_view name);
/// The same for a key in a [[stage]], without its group.
std::string nearest_stage_key(std::string_view name);

}  // namespace ringlet
