#pragma once

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <map>
#include <string>
#include <vector>

#include "train/cli.h"

namespace ringlet {

/// Parts of the command line that several commands have.

inline constexpr int64_t kAnyCount = int64_t{1} << 48;

void add_json(CLI::App& app, OutputFormat& format);

/// The help shows `value` as the default if it is allowed.
void add_count(CLI::App& app, const char* name, int64_t& value, const char* meaning,
               int64_t lowest = 1, int64_t highest = kAnyCount);

template <class Enumeration>
void add_choice(CLI::App& app, const char* name, Enumeration& value,
                const std::map<std::string, Enumeration>& words, const char* meaning) {
  app.add_option_function<std::string>(
         name, [words, &value](const std::string& word) { value = words.at(word); }, meaning)
      ->check(CLI::IsMember(words));
}

/// An option that stands for a key of the config.
void add_key(CLI::App& app, const char* name, const char* key, std::vector<std::string>& overrides,
             const char* meaning);

/// The same for a number of tokens, which may be written as 16k.
void add_tokens_key(CLI::App& app, const char* name, const char* key,
                    std::vector<std::string>& overrides, const char* meaning);

void add_settings(CLI::App& app, std::vector<std::string>& overrides);

/// Commands that plan, check, measure and draw (cli_studies.cpp).
void add_plan(CLI::App& main, PlanOptions& options);
void add_verify(CLI::App& main, VerifyOptions& options);
void add_explain(CLI::App& main, ExplainOptions& options);
void add_profile(CLI::App& main, ProfileOptions& options);
void add_study(CLI::App& main, StudyOptions& options);
void add_report(CLI::App& main, ReportOptions& options);
void add_doctor(CLI::App& main, DoctorCommand& command);

}  // namespace ringlet
