#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

namespace ringlet {

/// A bf16 number as it stands in memory: the upper half of a float.
struct Bf16 {
  uint16_t bits;
  bool operator==(const Bf16&) const = default;
};

inline float to_float(Bf16 value) { return std::bit_cast<float>(uint32_t{value.bits} << 16); }

/// The nearest bf16 number, ties to even. What lies beyond the largest one by half a step or more becomes infinity; NaN
/// stays NaN.
inline Bf16 to_bf16(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  // The bits that make it NaN may all be among those that are cut off.
  if (std::isnan(value)) return {uint16_t((bits >> 16) | 0x0040u)};
  return {uint16_t((bits + 0x7fffu + ((bits >> 16) & 1)) >> 16)};
}

}  // namespace ringlet
