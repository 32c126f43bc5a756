#include "tests/support/bf16.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "kernels/random.h"

namespace ringlet::test {
namespace {

TEST(Bf16Test, NumbersOfEightBitsStay) {
  for (const float value : {0.0f, 1.0f, -1.5f, 255.0f, 0x1.fep127f, 0x1p-126f, 0x1p-133f}) {
    EXPECT_EQ(round_to_bf16(value), value);
    EXPECT_EQ(round_to_bf16(-value), -value);
  }
  EXPECT_TRUE(std::signbit(round_to_bf16(-0.0f)));
}

TEST(Bf16Test, TiesGoToTheEvenNeighbour) {
  EXPECT_EQ(round_to_bf16(0x1.01p0f), 1.0f);       // half-way between 1 and 1 + 2^-7
  EXPECT_EQ(round_to_bf16(0x1.03p0f), 0x1.04p0f);  // between 1 + 2^-7 and 1 + 2^-6
  EXPECT_EQ(round_to_bf16(-0x1.01p0f), -1.0f);
  EXPECT_EQ(round_to_bf16(-0x1.03p0f), -0x1.04p0f);
  EXPECT_EQ(round_to_bf16(0x1.ffp0f), 2.0f);  // carries into the exponent
  EXPECT_EQ(round_to_bf16(0x1p-134f), 0.0f);  // half of the smallest number
}

TEST(Bf16Test, AllElseGoesToTheNearest) {
  EXPECT_EQ(round_to_bf16(0x1.00fffep0f), 1.0f);
  EXPECT_EQ(round_to_bf16(0x1.010002p0f), 0x1.02p0f);
  const CounterRandom random(1, hash_name("bf16"));
  for (int i = 0; i < 10000; ++i) {
    const auto value = float(random.normal(i));
    // The step between neighbours is 2^-7 of the power of two below.
    const double step = std::ldexp(1.0, std::ilogb(value) - 7);
    const double rounded = round_to_bf16(value);
    EXPECT_LE(std::abs(rounded - value), step / 2) << value;
    EXPECT_EQ(std::fmod(rounded, step), 0) << value;
  }
}

TEST(Bf16Test, TooLargeBecomesInfinity) {
  EXPECT_EQ(round_to_bf16(0x1.fefffep127f), 0x1.fep127f);
  EXPECT_EQ(round_to_bf16(0x1.ffp127f), HUGE_VALF);
  EXPECT_EQ(round_to_bf16(-std::numeric_limits<float>::max()), -HUGE_VALF);
  EXPECT_EQ(round_to_bf16(HUGE_VALF), HUGE_VALF);
  EXPECT_EQ(round_to_bf16(-HUGE_VALF), -HUGE_VALF);
}

TEST(Bf16Test, NanStaysNan) {
  const uint32_t patterns[] = {0x7fc00000u, 0xffc00000u, 0x7f800001u,
                               0xff80ffffu, 0x7fffffffu, 0xffffffffu};
  for (const uint32_t bits : patterns) {
    const float rounded = round_to_bf16(std::bit_cast<float>(bits));
    EXPECT_TRUE(std::isnan(rounded)) << std::hex << bits;
    EXPECT_EQ(std::bit_cast<uint32_t>(rounded) & 0xffffu, 0u) << std::hex << bits;
  }
}

}  // namespace
}  // namespace ringlet::test
