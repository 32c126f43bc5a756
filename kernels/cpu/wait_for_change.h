#pragma once

#include <atomic>
#include <chrono>
#include <thread>

namespace ringlet::cpu {

/// Returns when `value` (a std::atomic or atomic_ref) is no longer `old`: spins for some ten microseconds, offers its core
/// to other threads for 200 more, as ranks and their threads may outnumber the cores, then sleeps until somebody
/// notifies. In a virtual machine an operation whose helpers slept took some 20 microseconds more, and threads of an
/// operation often end further apart than the spinning lasts.
template <class Atomic, class T>
void wait_for_change(const Atomic& value, T old) {
  constexpr int kSpins = 500;
  constexpr std::chrono::microseconds kPatience{200};
  for (int i = 0; i < kSpins; ++i) {
    if (value.load(std::memory_order_acquire) != old) return;
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
  }
  const auto end = std::chrono::steady_clock::now() + kPatience;
  do {
    if (value.load(std::memory_order_acquire) != old) return;
    std::this_thread::yield();
  } while (std::chrono::steady_clock::now() < end);
  value.wait(old, std::memory_order_acquire);
}

}  // namespace ringlet::cpu
