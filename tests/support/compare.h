#pragma once

#include <cmath>
#include <span>

namespace ringlet::test {

/// Tolerances, in one place, for f32 compared with double: rounding is 6e-8; sums of up to a few thousand terms and
/// the polynomial exp2 (1e-7) stay below these. Loosening one to make a test pass is a defect.
inline constexpr double kOutputTolerance = 1e-5;    // relative L2
inline constexpr double kGradientTolerance = 1e-4;  // relative L2

/// |actual - expected| / |expected| in L2, in double; |actual - expected| where expected is zero.
/// NaN or a difference in size gives NaN: compare with !(error <= tolerance), as EXPECT_LE does.
template <class Actual, class Expected>
double relative_l2(std::span<const Actual> actual, std::span<const Expected> expected) {
  if (actual.size() != expected.size()) return std::nan("");
  double difference = 0, norm = 0;
  for (size_t i = 0; i < actual.size(); ++i) {
    const double d = double(actual[i]) - double(expected[i]);
    difference += d * d;
    norm += double(expected[i]) * double(expected[i]);
  }
  return std::sqrt(difference) / (norm > 0 ? std::sqrt(norm) : 1.0);
}

/// The same for any two containers of numbers.
template <class A, class B>
double error_of(const A& actual, const B& expected) {
  return relative_l2(std::span<const typename A::value_type>(actual),
                     std::span<const typename B::value_type>(expected));
}

}  // namespace ringlet::test
