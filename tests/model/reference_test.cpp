// The reference must be right before anything is compared with it: its gradients equal central
// differences of its losses, and its mask, loss and optimizer do what they say.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "kernels/random.h"
#include "model/sequence_layout.h"
#include "train/verify/reference_gpt.h"
#include "train/verify/verify_problem.h"

namespace ringlet::test {
namespace {

struct Case {
  const char* name;
  bool qk_norm, tied_head;
  HeadShape heads;
  Mask mask;
};

ReferenceInput tiny_input(const Case& shape) {
  ReferenceInput input;
  GptConfig& config = input.config;
  config.vocabulary = 9;
  config.layers = 2;
  config.width = 6;
  config.heads = shape.heads;
  config.mlp_width = 5;
  config.tied_head = shape.tied_head;
  config.qk_norm = shape.qk_norm;
  config.norm_epsilon = 1e-2f;  // large, so that a missing epsilon shows
  config.rope_base = 50;
  input.parameters = widened(random_parameters(config, 3));
  input.tokens = {4, 1, 7, 1, 0, 8, 2};
  input.labels = {1, 7, -1, 0, 8, 2, 5};
  for (int64_t i = 0; i < int64_t(input.tokens.size()); ++i) {
    input.first_visible.push_back(shape.mask.first_visible(i));
  }
  input.loss_scale = 0.7;
  return input;
}

/// The derivative of the loss by one parameter, to fourth order in the step.
double difference_quotient(ReferenceInput& input, double& parameter) {
  constexpr double kStep = 2e-4;
  const double kept = parameter;
  const auto loss_at = [&](double offset) {
    parameter = kept + offset;
    return reference_loss(input);
  };
  const double near = loss_at(kStep) - loss_at(-kStep);
  const double far = loss_at(2 * kStep) - loss_at(-2 * kStep);
  parameter = kept;
  return (8 * near - far) / (12 * kStep);
}

class ReferenceGradient : public testing::TestWithParam<Case> {};

TEST_P(ReferenceGradient, EqualsCentralDifferencesOfEveryParameter) {
  ReferenceInput input = tiny_input(GetParam());
  const ReferenceResult result = reference_gpt(input);
  for (auto& [name, values] : input.parameters) {
    const std::vector<double>& gradient = result.gradients.at(name);
    ASSERT_EQ(gradient.size(), values.size());
    double largest = 0;
    for (size_t i = 0; i < values.size(); ++i) {
      const double expected = difference_quotient(input, values[i]);
      EXPECT_NEAR(gradient[i], expected, 2e-9) << name << '[' << i << ']';
      largest = std::max(largest, std::abs(expected));
    }
    EXPECT_GT(largest, 1e-3) << name << " has no gradient to speak of";
  }
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, ReferenceGradient,
    testing::Values(Case{"plain", false, true, {1, 1, 8}, {}},
                    Case{"grouped_heads", false, false, {4, 2, 8}, {}},
                    Case{"qk_norm_documents", true, true, {2, 1, 8}, {{0, 2, 5}, 0}},
                    Case{"all_together", true, false, {4, 2, 8}, {{0, 4}, 3}}),
    [](const auto& shape) { return shape.param.name; });

TEST(Reference, GradientOfTheEmbeddingOutputGathersInTheTable) {
  const ReferenceInput input = tiny_input({"", false, false, {2, 1, 8}, {}});
  const ReferenceResult result = reference_gpt(input);
  std::vector<double> gathered(input.parameters.at("embedding.weight").size());
  for (size_t row = 0; row < input.tokens.size(); ++row) {
    for (size_t i = 0; i < 6; ++i) {
      gathered[size_t(input.tokens[row]) * 6 + i] += result.d_embedding_output[row * 6 + i];
    }
  }
  EXPECT_EQ(gathered, result.gradients.at("embedding.weight"));
}

TEST(Reference, LossIsTheScaledSumOverLabelsOnly) {
  const ReferenceInput input = tiny_input({"", false, true, {1, 1, 8}, {}});
  const ReferenceResult result = reference_gpt(input);
  double sum = 0;
  for (size_t i = 0; i < result.losses.size(); ++i) {
    EXPECT_EQ(result.losses[i] > 0, input.labels[i] >= 0);
    sum += result.losses[i];
  }
  EXPECT_DOUBLE_EQ(result.loss, 0.7 * sum);
  EXPECT_DOUBLE_EQ(reference_loss(input), result.loss);
  EXPECT_GT(std::abs(sum / 6 - std::log(9.0)), 0.05) << "looks like a fresh model";
}

TEST(Reference, ATokenReachesItsOwnDocumentAndLaterPositionsOnly) {
  ReferenceInput input = tiny_input({"", true, true, {2, 1, 8}, {{0, 3, 6}, 0}});
  const ReferenceResult before = reference_gpt(input);
  input.tokens[4] = 6;
  const ReferenceResult after = reference_gpt(input);
  for (size_t i = 0; i < 7; ++i) {
    EXPECT_EQ(before.losses[i] != after.losses[i], i == 4 || i == 5) << "position " << i;
  }
}

TEST(Reference, FirstPositionAttendsToItselfAlone) {
  const ReferenceInput input = tiny_input({"", false, true, {1, 1, 8}, {{0, 4}, 0}});
  const ReferenceResult result = reference_gpt(input);
  // Equal tokens at the starts of two documents: rotation leaves the score of a token with itself.
  ReferenceInput twin = input;
  twin.tokens[4] = twin.tokens[0];
  const ReferenceResult same = reference_gpt(twin);
  EXPECT_NEAR(same.layers[0].lse[4], result.layers[0].lse[0], 1e-14);
  for (size_t i = 0; i < 8; ++i) {
    EXPECT_EQ(same.layers[0].output[4 * 8 + i], result.layers[0].output[i]);
  }
}

TEST(Reference, RowThatSeesNothingGivesZero) {
  ReferenceInput input = tiny_input({"", false, true, {2, 2, 8}, {}});
  input.first_visible[2] = 3;
  const ReferenceResult result = reference_gpt(input);
  for (size_t i = 0; i < 16; ++i) EXPECT_EQ(result.layers[0].output[2 * 16 + i], 0);
  EXPECT_EQ(result.layers[0].lse[2 * 2], -INFINITY);
  EXPECT_EQ(result.layers[0].lse[2 * 2 + 1], -INFINITY);
  EXPECT_TRUE(std::isfinite(result.loss));
}

TEST(RandomParameters, ArePureAndUnlikeFreshOnes) {
  GptConfig config;
  config.qk_norm = true;
  const auto parameters = random_parameters(config, 1);
  EXPECT_EQ(parameters, random_parameters(config, 1));
  const auto others = random_parameters(config, 2);
  for (const auto& [name, values] : parameters) {
    EXPECT_NE(values, others.at(name)) << name;
    EXPECT_GT(*std::max_element(values.begin(), values.end()),
              *std::min_element(values.begin(), values.end()) + 0.1f)
        << name;
  }
}

GptConfig two_parameters() {
  GptConfig config;
  config.vocabulary = config.width = 1;
  config.layers = 0;
  return config;  // embedding [1, 1] and final norm [1]
}

TEST(ReferenceAdamW, FirstStepMatchesOneByHand) {
  ReferenceOptimizer optimizer{{{"embedding.weight", {2.0}}, {"final_norm.weight", {2.0}}}, {}, {}};
  const AdamW settings{0.5f, 0.75f, 0.5f, 1.0f, 0.25f, 0, 1};
  const Values gradients{{"embedding.weight", {3.0}}, {"final_norm.weight", {-4.0}}};
  EXPECT_DOUBLE_EQ(reference_adamw(two_parameters(), settings, 2.5, gradients, optimizer), 5);
  // Scaled by 2.5 / 5: 1.5 and -2. Corrected moments are g and g^2, so the step is g / (|g| + 1).
  EXPECT_DOUBLE_EQ(optimizer.weights["embedding.weight"][0], 2 - 0.5 * (1.5 / 2.5 + 0.25 * 2));
  EXPECT_DOUBLE_EQ(optimizer.weights["final_norm.weight"][0], 2 + 0.5 * (2.0 / 3.0));
  EXPECT_DOUBLE_EQ(optimizer.first_moment["embedding.weight"][0], 0.25 * 1.5);
  EXPECT_DOUBLE_EQ(optimizer.second_moment["final_norm.weight"][0], 0.5 * 4);
}

TEST(ReferenceAdamW, SmallGradientsAreNotScaledUp) {
  ReferenceOptimizer optimizer{{{"embedding.weight", {0.0}}, {"final_norm.weight", {0.0}}}, {}, {}};
  const AdamW settings{0.5f, 0.75f, 0.5f, 1.0f, 0, 0, 1};
  const Values gradients{{"embedding.weight", {0.0}}, {"final_norm.weight", {1.0}}};
  reference_adamw(two_parameters(), settings, 100, gradients, optimizer);
  EXPECT_DOUBLE_EQ(optimizer.weights["final_norm.weight"][0], -0.25);
}

}  // namespace
}  // namespace ringlet::test
