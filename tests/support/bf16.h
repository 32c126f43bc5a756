#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

namespace ringlet::test {

/// The bf16 number nearest to `value`, ties to even, as a float. What lies beyond the largest one
/// by half a step or more becomes infinity; NaN stays NaN.
inline float round_to_bf16(float value) {
  constexpr uint32_t kKept = 0xffff0000u, kQuiet = 0x00400000u;
  const auto bits = std::bit_cast<uint32_t>(value);
  // The bits that make it NaN may all be among those that are cut off.
  if (std::isnan(value)) return std::bit_cast<float>((bits & kKept) | kQuiet);
  const uint32_t last_kept_bit = (bits >> 16) & 1;
  return std::bit_cast<float>((bits + 0x7fffu + last_kept_bit) & kKept);
}

}  // namespace ringlet::test
