#include "train/cli_parts.h"

#include "train/units.h"

namespace ringlet {

void add_json(CLI::App& app, OutputFormat& format) {
  app.add_flag_callback(
      "--json", [&format] { format = OutputFormat::json; },
      "One JSON object on stdout; messages go to stderr");
}

void add_count(CLI::App& app, const char* name, int64_t& value, const char* meaning, int64_t lowest,
               int64_t highest) {
  CLI::Validator range = CLI::Range(lowest, highest);
  range.description(highest < kAnyCount ? fmt::format("{} to {}", lowest, highest) : "");
  CLI::Option* option = app.add_option(name, value, meaning)->type_name("N")->check(range);
  if (lowest <= value && value <= highest) option->capture_default_str();  // else it stands for what `meaning` tells
}

void add_key(CLI::App& app, const char* name, const char* key, std::vector<std::string>& overrides,
             const char* meaning) {
  app.add_option_function<std::string>(
      name,
      [key, &overrides](const std::string& value) {
        overrides.push_back(fmt::format("{}={}", key, value));
      },
      fmt::format("{} (the key {})", meaning, key));
}

void add_tokens_key(CLI::App& app, const char* name, const char* key,
                    std::vector<std::string>& overrides, const char* meaning) {
  app.add_option_function<std::string>(
      name,
      [key, &overrides](const std::string& value) {
        overrides.push_back(fmt::format("{}={}", key, value == "0" ? 0 : parse_tokens(value)));
      },
      fmt::format("{} (the key {})", meaning, key));
}

void add_settings(CLI::App& app, std::vector<std::string>& overrides) {
  app.add_option_function<std::vector<std::string>>(
         "--set",
         [&overrides](const std::vector<std::string>& settings) {
           overrides.insert(overrides.end(), settings.begin(), settings.end());
         },
         "key=value in place of the config's; may be repeated")
      ->allow_extra_args(false);
}

}  // namespace ringlet
