#pragma once

#include <cstdint>

namespace ringlet {

/// A random permutation of [0, count) as a pure function of the key: no memory, any place at once.
/// A Feistel network on the next power of four, walked until it is back in range (at most four
/// rounds of it on average). Source: Black and Rogaway, "Ciphers with Arbitrary Finite Domains"
/// (2002).
class Permutation {
 public:
  /// Throws Error unless count >= 1.
  Permutation(uint64_t key, int64_t count);
  /// 0 <= index < count.
  int64_t operator()(int64_t index) const;

 private:
  uint64_t key_;
  int64_t count_;
  int half_bits_ = 1;
};

enum class OrderMode : uint8_t { shuffled, sequential };

/// The window that stands at a place of the endless global order: cursor c is place c %
/// window_count of epoch c / window_count. Each epoch holds every window once; a shuffled one in an
/// order of its own.
int64_t window_of(uint64_t seed, int64_t cursor, int64_t window_count, OrderMode order);

}  // namespace ringlet
