#pragma once

#include <cmath>
#include <cstdint>
#include <numbers>
#include <string_view>

namespace ringlet {

/// One step of SplitMix64 (Steele, Lea, Flood 2014): a bijective mix of 64 bits.
constexpr uint64_t mix_bits(uint64_t x) {
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

/// FNV-1a of a name, to key a stream of numbers.
constexpr uint64_t hash_name(std::string_view name) {
  uint64_t hash = 0xcbf29ce484222325u;
  for (const char c : name) hash = (hash ^ static_cast<uint8_t>(c)) * 0x100000001b3u;
  return hash;
}

/// Random numbers as a pure function of (seed, stream, index): no state, any order, any rank.
class CounterRandom {
 public:
  CounterRandom(uint64_t seed, uint64_t stream) : key_(mix_bits(mix_bits(seed) ^ stream)) {}
  uint64_t bits(uint64_t index) const { return mix_bits(key_ ^ mix_bits(index)); }
  /// In (0, 1), 53 bits.
  double uniform(uint64_t index) const { return (double(bits(index) >> 11) + 0.5) * 0x1p-53; }
  /// Standard normal (Box and Muller 1958).
  double normal(uint64_t index) const {
    return std::sqrt(-2.0 * std::log(uniform(2 * index))) *
           std::cos(2.0 * std::numbers::pi * uniform(2 * index + 1));
  }

 private:
  uint64_t key_;
};

}  // namespace ringlet
