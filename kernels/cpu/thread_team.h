#pragma once

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include "kernels/trace.h"

namespace ringlet::cpu {

/// The threads that compute for one rank: the rank's own and helpers that wait between operations, awake for 200
/// microseconds, then asleep (wait_for_change.h). A helper that wakes on the core of the rank's own thread moves away, if
/// it may use another core. Belongs to one thread, which calls run() and split().
class ThreadTeam {
 public:
  /// threads >= 1, the caller's among them. Each task done is a sign of life of the rank in `trace`, if there is one,
  /// which must outlive the team. first_core: the threads are pinned, as long as the team lives, to the cores that the
  /// caller may use, from this one on, round and round. Throws Error when the system does not give the threads, or
  /// refuses a core.
  explicit ThreadTeam(int threads, Trace* trace = nullptr, std::optional<int> first_core = {});
  ~ThreadTeam();
  ThreadTeam(const ThreadTeam&) = delete;
  ThreadTeam& operator=(const ThreadTeam&) = delete;

  int size() const { return int(helpers_.size()) + 1; }
  /// Of the rank, within a long task.
  void show_life() const {
    if (trace_ != nullptr) trace_->sign_of_life();
  }

  /// body(task) for each task of [0, count), on any thread; they start in order. Returns when all
  /// are done; throws what the first task that failed threw. Results must not depend on who
  /// computes what.
  template <class Body>
  void run(int64_t count, const Body& body) {
    if (count <= 1 || helpers_.empty()) {
      for (int64_t task = 0; task < count; ++task) {
        body(task);
        show_life();
      }
      return;
    }
    run_on_all({[](const void* of, int64_t task) { (*static_cast<const Body*>(of))(task); }, &body,
                count});
  }

  /// body(first, count) over [0, size): as many equal stretches as threads, whole multiples of
  /// `grain` but for the end.
  template <class Body>
  void split(int64_t size, int64_t grain, const Body& body) {
    const int64_t grains = (size + grain - 1) / grain;
    const int64_t parts = std::min<int64_t>(this->size(), grains);
    run(parts, [&](int64_t part) {
      const int64_t first = part * grains / parts * grain;
      const int64_t end = std::min((part + 1) * grains / parts * grain, size);
      body(first, end - first);
    });
  }

 private:
  struct Job {
    void (*call)(const void* body, int64_t task) = nullptr;
    const void* body = nullptr;
    int64_t count = 0;
  };
  void run_on_all(const Job& job);
  void pin(int first_core);
  void end();
  void work();
  void help();

  Trace* trace_;
  Job job_;
  std::exception_ptr error_;
  std::mutex error_mutex_;
  std::atomic<int64_t> next_task_{0};
  std::atomic<uint32_t> round_{0};   // changes when there is work, or the end
  std::atomic<int32_t> helping_{0};  // helpers that have not finished this round
  std::atomic<int> core_{-1};        // on which the caller began this round
  bool ending_ = false;
  std::optional<cpu_set_t> cores_before_;  // of the caller, which is pinned
  std::vector<std::thread> helpers_;
};

}  // namespace ringlet::cpu
