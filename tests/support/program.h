#pragma once

#include <sys/types.h>

#include <chrono>
#include <filesystem>
#include <string>
#include <vector>

namespace ringlet::test {

struct ProgramResult {
  int exit_code = -1;  // 128 + signal when killed
  std::string output, errors;
  double seconds = 0;
};

/// The ringlet program under way, in a folder of its own choosing.
class Program {
 public:
  Program(const std::string& program, const std::vector<std::string>& arguments,
          const std::filesystem::path& folder);
  ~Program();  // kills it if it still runs
  Program(const Program&) = delete;
  Program& operator=(const Program&) = delete;
  void send(int signal);
  bool running();
  /// Waits for its end; kills it after `limit`.
  ProgramResult finish(std::chrono::seconds limit = std::chrono::seconds(120));

 private:
  std::filesystem::path output_, errors_;
  std::chrono::steady_clock::time_point start_;
  pid_t pid_ = -1;
};

ProgramResult run_program(const std::string& program, const std::vector<std::string>& arguments,
                          const std::filesystem::path& folder);

std::string file_text(const std::filesystem::path& path);
void write_text(const std::filesystem::path& path, const std::string& text);

}  // namespace ringlet::test
