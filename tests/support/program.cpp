#include "tests/support/program.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <fstream>
#include <sstream>
#include <thread>

#include "kernels/check.h"

namespace ringlet::test {
namespace {

namespace fs = std::filesystem;

[[noreturn]] void become(const std::string& program, const std::vector<std::string>& arguments,
                         const fs::path& folder, const fs::path& output, const fs::path& errors) {
  std::vector<char*> argv{const_cast<char*>(program.c_str())};
  for (const std::string& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
  argv.push_back(nullptr);
  const int out = open(output.c_str(), O_CREAT | O_WRONLY | O_TRUNC, 0600);
  const int err = open(errors.c_str(), O_CREAT | O_WRONLY | O_TRUNC, 0600);
  const int in = open("/dev/null", O_RDONLY);
  if (chdir(folder.c_str()) == 0 && dup2(in, 0) == 0 && dup2(out, 1) == 1 && dup2(err, 2) == 2) {
    execv(program.c_str(), argv.data());
  }
  _exit(127);
}

}  // namespace

Program::Program(const std::string& program, const std::vector<std::string>& arguments,
                 const fs::path& folder)
    : start_(std::chrono::steady_clock::now()) {
  static std::atomic<int> count = 0;
  const std::string number = std::to_string(++count);
  output_ = folder / ("output-" + number);
  errors_ = folder / ("errors-" + number);
  pid_ = fork();
  CHECK(pid_ >= 0, "no process can be started");
  if (pid_ == 0) become(program, arguments, folder, output_, errors_);
}

Program::~Program() {
  if (pid_ < 0) return;
  kill(pid_, SIGKILL);
  waitpid(pid_, nullptr, 0);
}

void Program::send(int signal) { kill(pid_, signal); }

bool Program::running() {
  siginfo_t end{};
  return waitid(P_PID, id_t(pid_), &end, WEXITED | WNOHANG | WNOWAIT) == 0 && end.si_pid == 0;
}

ProgramResult Program::finish(std::chrono::seconds limit) {
  ProgramResult result;
  int status = 0;
  while (waitpid(pid_, &status, WNOHANG) == 0) {
    if (std::chrono::steady_clock::now() - start_ > limit) kill(pid_, SIGKILL);
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  pid_ = -1;
  result.exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  result.output = file_text(output_);
  result.errors = file_text(errors_);
  result.seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  return result;
}

ProgramResult run_program(const std::string& program, const std::vector<std::string>& arguments,
                          const fs::path& folder) {
  return Program(program, arguments, folder).finish();
}

std::string file_text(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

void write_text(const fs::path& path, const std::string& text) {
  std::ofstream(path, std::ios::binary) << text;
}

}  // namespace ringlet::test
