// Two opinions that share no line of code, the reference in C++ and PyTorch with its autograd, must
// agree.
#include "tests/support/torch_oracle.h"

#include <gtest/gtest.h>

#include <cmath>
#include <set>

#include "kernels/random.h"
#include "train/verify/reference_gpt.h"
#include "train/verify/verify_problem.h"

namespace ringlet::test {
namespace {

constexpr double kLossTolerance = 1e-10;  // both in double, sums of some hundred terms
constexpr double kGradientTolerance64 = 1e-9;

OracleCase random_case(uint64_t seed, int64_t length, bool qk_norm, bool tied_head) {
  OracleCase input;
  input.config.vocabulary = 31;
  input.config.layers = 2;
  input.config.width = 24;
  input.config.heads = {6, 2, 8};
  input.config.mlp_width = 20;
  input.config.qk_norm = qk_norm;
  input.config.tied_head = tied_head;
  input.config.norm_epsilon = 1e-3f;
  input.config.rope_base = 300;
  input.parameters = random_parameters(input.config, seed);
  const CounterRandom random(seed, 0);
  for (int64_t i = 0; i < length; ++i) {
    input.tokens.push_back(int32_t(random.bits(uint64_t(i)) % 31));
    input.labels.push_back(i % 7 == 3 ? -1 : int32_t(random.bits(uint64_t(length + i)) % 31));
  }
  input.loss_scale = 0.25;
  return input;
}

void expect_near(const std::vector<double>& actual, const std::vector<double>& expected,
                 double tolerance, const std::string& what) {
  ASSERT_EQ(actual.size(), expected.size()) << what;
  for (size_t i = 0; i < actual.size(); ++i) {
    EXPECT_LE(std::abs(actual[i] - expected[i]), tolerance) << what << '[' << i << ']';
  }
}

void expect_near(const Values& actual, const Values& expected, double tolerance, const char* what) {
  ASSERT_EQ(actual.size(), expected.size()) << what;
  for (const auto& [name, values] : expected) {
    expect_near(actual.at(name), values, tolerance, std::string(what) + " of " + name);
  }
}

void expect_equal_results(const ReferenceResult& actual, const ReferenceResult& expected) {
  EXPECT_LE(std::abs(actual.loss - expected.loss), kLossTolerance);
  expect_near(actual.losses, expected.losses, kLossTolerance, "losses");
  expect_near(actual.gradients, expected.gradients, kGradientTolerance64, "gradient");
  expect_near(actual.d_embedding_output, expected.d_embedding_output, kGradientTolerance64,
              "gradient of the embedding output");
  for (size_t layer = 0; layer < expected.layers.size(); ++layer) {
    expect_near(actual.layers.at(layer).output, expected.layers[layer].output, kLossTolerance,
                "attention output");
    expect_near(actual.layers[layer].lse, expected.layers[layer].lse, kLossTolerance, "lse");
  }
}

TEST(TorchOracle, ReferenceAgreesOnOneTiedDocument) {
  const OracleCase input = random_case(1, 37, false, true);
  const auto oracle = run_oracle(input);
  if (!oracle) GTEST_SKIP() << "no python3 here can import torch (RINGLET_PYTHON names another)";
  expect_equal_results(reference_gpt(input.reference_input()), oracle->first);
}

TEST(TorchOracle, ReferenceAgreesWithQkNormDocumentsAndWindow) {
  OracleCase input = random_case(2, 41, true, false);
  input.mask = {{0, 5, 6, 29}, 9};
  const auto oracle = run_oracle(input);
  if (!oracle) GTEST_SKIP() << "no python3 here can import torch (RINGLET_PYTHON names another)";
  expect_equal_results(reference_gpt(input.reference_input()), oracle->first);
}

TEST(TorchOracle, ReferenceAgreesAfterFiveSteps) {
  OracleCase input = random_case(3, 23, true, true);
  input.steps = 5;
  input.adamw.learning_rate = 0.01f;
  input.adamw.epsilon = 1e-3f;  // smaller ones magnify rounding where a gradient is nearly zero
  input.clip = 12;              // the norms fall from 23 to 10: both cases occur
  const auto oracle = run_oracle(input);
  if (!oracle) GTEST_SKIP() << "no python3 here can import torch (RINGLET_PYTHON names another)";
  ReferenceInput step_input = input.reference_input();
  ReferenceOptimizer optimizer{step_input.parameters, {}, {}};
  std::set<bool> clipped;
  for (int step = 0; step < input.steps; ++step) {
    step_input.parameters = optimizer.weights;
    const ReferenceResult result = reference_gpt(step_input);
    input.adamw.step = step + 1;
    const double norm =
        reference_adamw(input.config, input.adamw, input.clip, result.gradients, optimizer);
    EXPECT_LE(std::abs(result.loss - oracle->losses.at(size_t(step))), kLossTolerance);
    EXPECT_LE(std::abs(norm - oracle->norms.at(size_t(step))), kGradientTolerance64);
    clipped.insert(norm > input.clip);
  }
  EXPECT_EQ(clipped.size(), 2u);
  expect_near(optimizer.weights, oracle->weights, kGradientTolerance64, "weight");
}

TEST(TorchOracle, Float32IsNearFloat64) {
  OracleCase input = random_case(4, 19, false, true);
  input.dtype = "float32";
  const auto oracle = run_oracle(input);
  if (!oracle) GTEST_SKIP() << "no python3 here can import torch (RINGLET_PYTHON names another)";
  const ReferenceResult expected = reference_gpt(input.reference_input());
  EXPECT_NE(oracle->first.loss, expected.loss);
  expect_near(oracle->first.losses, expected.losses, 1e-5, "losses");
  expect_near(oracle->first.gradients, expected.gradients, 1e-5, "gradient");
}

}  // namespace
}  // namespace ringlet::test
