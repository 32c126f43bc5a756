#include "tests/faults/child.h"

#include <fmt/format.h>
#include <signal.h>
#include <sys/ptrace.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <filesystem>

#include "kernels/check.h"

namespace ringlet::test {
namespace {

constexpr int kErrorStatus = 1, kNotPossibleStatus = 77, kOtherStatus = 99;

[[noreturn]] void run_and_exit(const std::function<void()>& work) {
  int status = 0;
  try {
    work();
  } catch (const Error& error) {
    std::fprintf(stderr, "child: %s (%s)\n", error.what(), error.advice.c_str());
    status = error.advice.empty() ? kOtherStatus : kErrorStatus;
  } catch (const NotPossible&) {
    status = kNotPossibleStatus;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "child: unexpected: %s\n", error.what());
    status = kOtherStatus;
  }
  ::_exit(status);
}

Ending ending_of(int status) {
  if (!WIFEXITED(status)) return Ending::killed;
  switch (WEXITSTATUS(status)) {
    case 0:
      return Ending::done;
    case kErrorStatus:
      return Ending::error;
    case kNotPossibleStatus:
      return Ending::not_possible;
    default:
      return Ending::killed;
  }
}

}  // namespace

Ending run_in_child(const std::function<void()>& work) {
  const pid_t child = ::fork();
  if (child == 0) run_and_exit(work);
  int status = 0;
  if (child < 0 || ::waitpid(child, &status, 0) != child) return Ending::not_possible;
  return ending_of(status);
}

TracedChild::TracedChild(const std::function<void()>& work) : pid_(::fork()) {
  if (pid_ == 0) {
    if (::ptrace(PTRACE_TRACEME, 0, nullptr, nullptr) != 0) ::_exit(kNotPossibleStatus);
    ::raise(SIGSTOP);
    run_and_exit(work);
  }
  int status = 0;
  if (pid_ < 0 || ::waitpid(pid_, &status, 0) != pid_) return;
  alive_ = WIFSTOPPED(status);
  if (!alive_)
    ending_ = ending_of(status);
  else
    ::ptrace(PTRACE_SETOPTIONS, pid_, nullptr, PTRACE_O_TRACESYSGOOD | PTRACE_O_EXITKILL);
}

TracedChild::~TracedChild() {
  if (!alive_) return;
  ::kill(pid_, SIGKILL);
  int status = 0;
  while (::waitpid(pid_, &status, 0) == pid_ && WIFSTOPPED(status)) {
  }
}

/// To the next entry to or exit from a system call; false: ended.
bool TracedChild::run_to_stop() {
  int signal = 0;
  while (alive_) {
    ::ptrace(PTRACE_SYSCALL, pid_, nullptr, signal);
    int status = 0;
    if (::waitpid(pid_, &status, 0) != pid_ || !WIFSTOPPED(status)) {
      alive_ = false;
      ending_ = ending_of(status);
    } else if (WSTOPSIG(status) == (SIGTRAP | 0x80)) {
      return true;
    } else {
      signal = WSTOPSIG(status);
    }
  }
  return false;
}

std::optional<SystemCall> TracedChild::next_call() {
  while (run_to_stop()) {
    __ptrace_syscall_info info{};
    ::ptrace(PTRACE_GET_SYSCALL_INFO, pid_, sizeof info, &info);
    if (info.op == PTRACE_SYSCALL_INFO_ENTRY) return SystemCall{info.entry.nr, info.entry.args[0]};
  }
  return std::nullopt;
}

bool TracedChild::inject([[maybe_unused]] int error_number) {
#if defined(__x86_64__)
  user_regs_struct registers{};
  ::ptrace(PTRACE_GETREGS, pid_, nullptr, &registers);
  registers.orig_rax = ~0ull;  // no such call
  ::ptrace(PTRACE_SETREGS, pid_, nullptr, &registers);
  if (!run_to_stop()) return false;
  ::ptrace(PTRACE_GETREGS, pid_, nullptr, &registers);
  registers.rax = static_cast<unsigned long long>(-static_cast<long long>(error_number));
  ::ptrace(PTRACE_SETREGS, pid_, nullptr, &registers);
  return true;
#else
  return false;
#endif
}

std::string TracedChild::path_of(uint64_t descriptor) const {
  std::error_code ignored;
  return std::filesystem::read_symlink(fmt::format("/proc/{}/fd/{}", pid_, descriptor), ignored)
      .string();
}

}  // namespace ringlet::test
