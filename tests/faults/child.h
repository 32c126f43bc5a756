#pragma once

#include <sys/types.h>

#include <cstdint>
#include <functional>
#include <optional>
#include <string>

namespace ringlet::test {

/// How a child process ended.
enum class Ending : uint8_t { done, error, killed, not_possible };

/// Thrown in a child when the machine does not allow what the test needs (mounts, tracing).
struct NotPossible {};

/// Runs `work` in a forked process, so that limits, mounts and death stay there. `error` means that
/// it threw ringlet::Error with advice; any other exception counts as killed. Messages go to
/// stderr.
Ending run_in_child(const std::function<void()>& work);

/// A system call about to be entered.
struct SystemCall {
  uint64_t number, first_argument;
};

/// A process that stops before each of its system calls. One thread only.
class TracedChild {
 public:
  explicit TracedChild(const std::function<void()>& work);
  ~TracedChild();  // kills it
  TracedChild(const TracedChild&) = delete;
  TracedChild& operator=(const TracedChild&) = delete;

  /// Runs to the entry of the next system call. Nothing: the process has ended, see ending().
  std::optional<SystemCall> next_call();
  /// Makes the call that the child is about to enter fail with this error instead.
  /// False when it has ended instead, or where this kind of processor is not known.
  bool inject(int error_number);
  Ending ending() const { return ending_; }
  /// The path behind an open file of the child.
  std::string path_of(uint64_t descriptor) const;

 private:
  bool run_to_stop();
  pid_t pid_;
  Ending ending_ = Ending::killed;
  bool alive_ = false;
};

}  // namespace ringlet::test
