#include "kernels/cpu/thread_team.h"

#if defined(__linux__)
#include <sched.h>
#endif

#include <string>
#include <system_error>
#include <utility>

#include "kernels/check.h"

namespace ringlet::cpu {
namespace {

inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

/// Returns when `value` is no longer `old`. Bounded spinning: ranks and their threads may outnumber
/// the cores.
template <class T>
void wait_for_change(const std::atomic<T>& value, T old) {
  constexpr int kSpins = 500;
  for (int i = 0; i < kSpins; ++i) {
    if (value.load(std::memory_order_acquire) != old) return;
    relax();
  }
  value.wait(old, std::memory_order_acquire);
}

}  // namespace

ThreadTeam::ThreadTeam(int threads, Trace* trace) : trace_(trace), cores_(size_t(std::max(threads, 1))) {
  CHECK(threads >= 1, threads, " threads");
  for (std::atomic<int>& core : cores_) core = -1;
  helpers_.reserve(size_t(threads - 1));
  try {
    for (int i = 1; i < threads; ++i) helpers_.emplace_back([this, i] { help(size_t(i)); });
  } catch (const std::system_error& error) {
    end();
    throw Error("cannot start thread " + std::to_string(helpers_.size() + 2) +
                    " of a rank: " + error.what(),
                "lower run.threads_per_rank, or raise the limit of threads (ulimit -u)");
  }
}

ThreadTeam::~ThreadTeam() { end(); }

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
#if defined(__linux__)
  cores_[0].store(sched_getcpu(), std::memory_order_relaxed);
#endif
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

/// Moves a helper that woke on the core of another thread of the team back to its own, or to a free one. In a virtual
/// machine the kernel may take a core that is idle for one that the host has taken away, wake a helper on the core of
/// whom wakes it, and leave both there for milliseconds.
void ThreadTeam::keep_apart([[maybe_unused]] size_t helper) {
#if defined(__linux__)
  const int core = sched_getcpu(), own = cores_[helper].exchange(core, std::memory_order_relaxed);
  const auto is_taken = [&](int by_another) {
    for (size_t other = 0; other < cores_.size(); ++other) {
      if (other != helper && cores_[other].load(std::memory_order_relaxed) == by_another) return true;
    }
    return false;
  };
  cpu_set_t allowed, free;
  if (!is_taken(core) || sched_getaffinity(0, sizeof allowed, &allowed) != 0) return;
  CPU_ZERO(&free);
  for (int other = 0; other < CPU_SETSIZE; ++other) {
    if (CPU_ISSET(size_t(other), &allowed) && !is_taken(other)) CPU_SET(size_t(other), &free);
  }
  if (own >= 0 && CPU_ISSET(size_t(own), &free)) {
    CPU_ZERO(&free);
    CPU_SET(size_t(own), &free);
  }
  // Where no core is free, or the kernel refuses, it stays.
  if (CPU_COUNT(&free) == 0 || sched_setaffinity(0, sizeof free, &free) != 0) return;
  cores_[helper].store(sched_getcpu(), std::memory_order_relaxed);
  static_cast<void>(sched_setaffinity(0, sizeof allowed, &allowed));
#endif
}

void ThreadTeam::help(size_t helper) {
  for (uint32_t seen = 0;;) {
    wait_for_change(round_, seen);
    ++seen;
    if (ending_) return;
    keep_apart(helper);
    work();
    if (helping_.fetch_sub(1, std::memory_order_acq_rel) == 1) helping_.notify_one();
  }
}

}  // namespace ringlet::cpu
