#pragma once

#include <atomic>

namespace ringlet::cpu {

/// Returns when `value` (a std::atomic or atomic_ref) is no longer `old`: spins for some ten microseconds, then sleeps
/// until somebody notifies. Bounded spinning: ranks and their threads may outnumber the cores.
template <class Atomic, class T>
void wait_for_change(const Atomic& value, T old) {
  constexpr int kSpins = 500;
  for (int i = 0; i < kSpins; ++i) {
    if (value.load(std::memory_order_acquire) != old) return;
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
  }
  value.wait(old, std::memory_order_acquire);
}

}  // namespace ringlet::cpu
