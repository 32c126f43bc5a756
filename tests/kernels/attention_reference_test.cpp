#include "tests/support/attention_reference.h"

#include <gtest/gtest.h>

#include <numeric>

#include "tests/support/compare.h"

namespace ringlet::test {
namespace {

/// Central differences of sum(output * d_output) against the reference's own gradients.
TEST(AttentionReferenceTest, GradientsAreCentralDifferences) {
  AttentionCase c = one_piece({2, 1, 8}, 6);
  c.first_visible = [](int64_t position) { return position < 4 ? 0 : 2; };
  ReferenceInput input = c.reference_input();
  const ReferenceResult r = attention_reference(input);
  const auto objective = [&] {
    const ReferenceResult at = attention_reference(input);
    return std::inner_product(at.output.begin(), at.output.end(), input.d_output.begin(), 0.0);
  };
  const auto differences = [&](std::vector<double>& values) {
    std::vector<double> gradient;
    for (double& value : values) {
      const double kept = value, step = 1e-5;
      value = kept + step;
      const double above = objective();
      value = kept - step;
      gradient.push_back((above - objective()) / (2 * step));
      value = kept;
    }
    return gradient;
  };
  EXPECT_LE(error_of(differences(input.q), r.dq), 1e-8);
  EXPECT_LE(error_of(differences(input.k), r.dk), 1e-8);
  EXPECT_LE(error_of(differences(input.v), r.dv), 1e-8);
}

}  // namespace
}  // namespace ringlet::test
