#include "data/hdf5_child.h"

#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <fstream>
#include <memory>
#include <new>
#include <thread>
#include <type_traits>

#include "kernels/check.h"

namespace ringlet {

namespace {

using Clock = std::chrono::steady_clock;

// a chunk may be 16 MiB, and the library holds a few; the facts themselves take next to nothing
constexpr rlim_t kChildBytes = rlim_t{512} << 20;
constexpr auto kChildPatience = std::chrono::seconds(60);  // a cold network disk

/// Memory that the child writes and the parent reads.
struct Answer {
  enum State : int { none, facts, error };
  std::atomic<int> state{none};
  CorpusFacts corpus;
  ShortText<1024> cause, advice;
};
static_assert(std::is_trivially_copyable_v<CorpusFacts>);

struct Unmap {
  void operator()(Answer* answer) const { munmap(answer, sizeof(Answer)); }
};
using SharedAnswer = std::unique_ptr<Answer, Unmap>;

SharedAnswer make_shared_answer() {
  void* memory =
      mmap(nullptr, sizeof(Answer), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) fail_with_errno("share memory for", "a child process");
  return SharedAnswer(new (memory) Answer);
}

void limit(int resource, rlim_t value) {
  rlimit both{};
  getrlimit(static_cast<__rlimit_resource_t>(resource), &both);
  both.rlim_cur = std::min(value, both.rlim_max);
  setrlimit(static_cast<__rlimit_resource_t>(resource), &both);
}

/// The address space that this process has now; the child's limit counts from there.
rlim_t address_space_bytes() {
  rlim_t pages = 0;
  std::ifstream("/proc/self/statm") >> pages;
  return pages * rlim_t(sysconf(_SC_PAGESIZE));
}

void limit_child(int64_t cpu_seconds) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);  // nobody waits for it then, and it may hang
  // A stop that was meant for the parent is not a damaged file; the limits end the child anyway.
  for (const int signal_number : {SIGINT, SIGTERM}) signal(signal_number, SIG_IGN);
  for (const int signal_number : {SIGSEGV, SIGBUS, SIGFPE, SIGABRT, SIGXCPU}) {
    signal(signal_number, SIG_DFL);
  }
  limit(RLIMIT_CORE, 0);
  limit(RLIMIT_AS, address_space_bytes() + kChildBytes);
  limit(RLIMIT_CPU, rlim_t(cpu_seconds));
}

/// Never returns: no destructor and no exit handler of the parent may run twice, and the library's
/// own may crash after a full disk.
[[noreturn]] void answer_as_child(int64_t cpu_seconds, const FactWork& work, Answer& answer) {
  try {
    limit_child(cpu_seconds);
    setenv("HDF5_USE_FILE_LOCKING", "FALSE", 1);  // network disks may have no locks
    answer.corpus = work();
    answer.state = Answer::facts;
  } catch (const Error& error) {
    answer.cause.set(error.what());
    answer.advice.set(error.advice);
    answer.state = Answer::error;
  } catch (...) {  // out of memory: no answer, as after a crash
  }
  _exit(0);
}

/// Returns when the child is gone, by itself or because its time was up.
void await_child(pid_t child, int64_t cpu_seconds) {
  const auto deadline = Clock::now() + kChildPatience + std::chrono::seconds(4 * cpu_seconds);
  auto pause = std::chrono::microseconds(100);
  bool killed = false;
  while (waitpid(child, nullptr, WNOHANG) == 0) {
    if (!killed && Clock::now() > deadline) {
      kill(child, SIGKILL);
      killed = true;
    }
    std::this_thread::sleep_for(pause);
    pause = std::min(pause * 2, std::chrono::microseconds(1000));
  }
}

}  // namespace

CorpusFacts run_hdf5_child(int64_t cpu_seconds, const Error& crashed, const FactWork& work) {
  const SharedAnswer answer = make_shared_answer();
  const pid_t child = fork();
  if (child == 0) answer_as_child(cpu_seconds, work, *answer);
  if (child < 0) fail_with_errno("start", "a child process");
  await_child(child, cpu_seconds);
  if (answer->state == Answer::facts) return answer->corpus;
  if (answer->state == Answer::error) throw Error(answer->cause.get(), answer->advice.get());
  throw crashed;
}

}  // namespace ringlet
