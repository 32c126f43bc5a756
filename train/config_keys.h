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

/// The known key that `name` was probably meant to be; empty when none is near.
std::string nearest_key(std::string_view name);

}  // namespace ringlet
