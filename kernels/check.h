#pragma once

#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>

namespace ringlet {

/// Something cannot go on: bad input, bad shape, bad file, failed device or lost peer. Never control flow.
/// `what()` is one line of cause; `advice`, where there is any, one line of what to do.
/// The program prints both and exits with 1.
struct Error : std::runtime_error {
  explicit Error(const std::string& cause, std::string what_to_do = {})
      : std::runtime_error(cause), advice(std::move(what_to_do)) {}
  std::string advice;
};

/// The command line or the config asks for something that cannot be: exit code 2.
struct UsageError : Error {
  using Error::Error;
};

/// Another rank failed first; its message is the one to show.
struct PeerFailed : Error {
  using Error::Error;
};

template <class... Values>
[[noreturn]] void fail(const char* condition, const char* file, int line, const Values&... values) {
  std::ostringstream text;
  (text << ... << values);
  text << " [" << condition << " is false at " << file << ':' << line << ']';
  throw Error(text.str());
}

}  // namespace ringlet

/// CHECK(rows > 0, "rows = ", rows) throws Error with the values, the condition, file and line.
#define CHECK(condition, ...) \
  ((condition) ? void() : ::ringlet::fail(#condition, __FILE__, __LINE__, __VA_ARGS__))
