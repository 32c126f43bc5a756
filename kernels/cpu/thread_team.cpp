#include "kernels/cpu/thread_team.h"

#include <pthread.h>
#include <sched.h>

#include <cerrno>
#include <cstring>
#include <string>
#include <system_error>
#include <utility>

#include "kernels/check.h"
#include "kernels/cpu/wait_for_change.h"

namespace ringlet::cpu {
namespace {

/// Moves the calling thread, if it runs on `core`, to `home` or else to any other core that it may use. Returns where it
/// is. In a virtual machine the kernel may take a core that is idle for one that the host has taken away; it then wakes a
/// helper on the core of the thread that wakes it, and leaves both there for milliseconds.
int leave_core(int core, int home) {
  const int here = sched_getcpu();
  if (here < 0 || here != core) return here;
  cpu_set_t allowed, others;
  if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return here;
  others = allowed;
  CPU_CLR(size_t(core), &others);
  if (home >= 0 && home != core && CPU_ISSET(size_t(home), &allowed)) {
    CPU_ZERO(&others);
    CPU_SET(size_t(home), &others);
  }
  // Where there is no other core, or the kernel refuses, it stays.
  if (CPU_COUNT(&others) == 0 || sched_setaffinity(0, sizeof others, &others) != 0) return here;
  static_cast<void>(sched_setaffinity(0, sizeof allowed, &allowed));
  return sched_getcpu();
}

}  // namespace

ThreadTeam::ThreadTeam(int threads, Trace* trace, std::optional<int> first_core) : trace_(trace) {
  CHECK(threads >= 1, threads, " threads");
  helpers_.reserve(size_t(threads - 1));
  try {
    for (int i = 1; i < threads; ++i) helpers_.emplace_back([this] { help(); });
  } catch (const std::system_error& error) {
    end();
    throw Error("cannot start thread " + std::to_string(helpers_.size() + 2) +
                    " of a rank: " + error.what(),
                "lower run.threads_per_rank, or raise the limit of threads (ulimit -u)");
  }
  if (!first_core) return;
  try {
    pin(*first_core);
  } catch (...) {
    end();
    throw;
  }
}

ThreadTeam::~ThreadTeam() {
  end();
  if (cores_before_) static_cast<void>(sched_setaffinity(0, sizeof *cores_before_, &*cores_before_));
}

void ThreadTeam::pin(int first_core) {
  cpu_set_t allowed;
  int refused = sched_getaffinity(0, sizeof allowed, &allowed) == 0 ? 0 : errno;
  std::vector<cpu_set_t> cores;
  for (size_t core = 0; refused == 0 && core < CPU_SETSIZE; ++core) {
    if (!CPU_ISSET(core, &allowed)) continue;
    CPU_ZERO(&cores.emplace_back());
    CPU_SET(core, &cores.back());
  }
  for (size_t i = helpers_.size() + 1; refused == 0 && i-- > 0;) {  // the caller last
    const pthread_t thread = i == 0 ? pthread_self() : helpers_[i - 1].native_handle();
    refused = pthread_setaffinity_np(thread, sizeof allowed, &cores[(size_t(first_core) + i) % cores.size()]);
  }
  if (refused != 0) {
    throw Error(std::string("cannot pin threads to cores: ") + std::strerror(refused), "set run.pin_threads = false");
  }
  cores_before_ = allowed;
}

void ThreadTeam::end() {
  ending_ = true;
  round_.fetch_add(1, std::memory_order_release);
  round_.notify_all();
  for (std::thread& helper : helpers_) helper.join();
}

void ThreadTeam::run_on_all(const Job& job) {
  job_ = job;
  next_task_.store(0, std::memory_order_relaxed);
  helping_.store(int32_t(helpers_.size()), std::memory_order_relaxed);
  core_.store(sched_getcpu(), std::memory_order_relaxed);
  round_.fetch_add(1, std::memory_order_release);
  round_.notify_all();
  work();
  for (int32_t left = helping_.load(std::memory_order_acquire); left != 0;
       left = helping_.load(std::memory_order_acquire)) {
    wait_for_change(helping_, left);
  }
  if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
}

void ThreadTeam::work() {
  try {
    for (int64_t task; (task = next_task_.fetch_add(1, std::memory_order_relaxed)) < job_.count;) {
      job_.call(job_.body, task);
      show_life();
    }
  } catch (...) {
    const std::lock_guard lock(error_mutex_);
    if (!error_) error_ = std::current_exception();
    next_task_.store(job_.count, std::memory_order_relaxed);
  }
}

void ThreadTeam::help() {
  int home = sched_getcpu();
  for (uint32_t seen = 0;;) {
    wait_for_change(round_, seen);
    ++seen;
    if (ending_) return;
    home = leave_core(core_.load(std::memory_order_relaxed), home);
    work();
    if (helping_.fetch_sub(1, std::memory_order_acq_rel) == 1) helping_.notify_one();
  }
}

}  // namespace ringlet::cpu
