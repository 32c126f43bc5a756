// The whole model on a ring must give what a dense model in double gives: losses and every gradient.
#include <gtest/gtest.h>

#include "tests/support/compare.h"
#include "tests/support/ring_case.h"
#include "train/verify/verify_problem.h"

namespace ringlet::test {
namespace {

GptConfig tiny_config() {
  GptConfig config;
  config.vocabulary = 19;
  config.layers = 2;
  config.width = 24;
  config.heads = {4, 2, 8};
  config.mlp_width = 40;
  return config;
}

std::vector<GptConfig> configs() {
  GptConfig grouped = tiny_config();
  GptConfig full = tiny_config();
  full.heads = {3, 3, 16};
  full.tied_head = false;
  full.qk_norm = true;
  GptConfig multi_query = tiny_config();
  multi_query.heads = {4, 1, 8};
  multi_query.qk_norm = true;
  return {grouped, full, multi_query};
}

ModelCase make_case(const GptConfig& config, int64_t length, const Mask& mask) {
  ModelCase c;
  c.config = config;
  c.mask = mask;
  c.settings = {Recompute::selective, 16, 24};  // chunks smaller than a rank's rows
  c.weights = random_parameters(config, 3);
  c.gradient_scale = 1.0f / float(length);
  fill_tokens(c, length, 5);
  return c;
}

ReferenceResult reference_of(const ModelCase& c) {
  ReferenceInput input{c.config, widened(c.weights), c.tokens, c.labels, {}, c.gradient_scale};
  for (size_t i = 0; i < c.tokens.size(); ++i) {
    input.first_visible.push_back(c.mask.first_visible(int64_t(i)));
  }
  return reference_gpt(input);
}

/// The largest relative error of any parameter's gradient. Those that vanish in exact arithmetic (a lone key's
/// softmax moves nothing) are left with the rounding of f32, 6e-8 of the terms that cancel: they are measured
/// against a thousandth of the whole gradient, so that 1e-4 of it stands for 1e-7 of the whole.
double worst_gradient_error(const ValuesByName& actual, const Values& expected) {
  double whole = 0, worst = 0;
  for (const auto& [name, values] : expected)
    for (const double value : values) whole += value * value;
  for (const auto& [name, values] : expected) {
    double difference = 0, norm = 0;
    for (size_t i = 0; i < values.size(); ++i) {
      difference += (actual.at(name)[i] - values[i]) * (actual.at(name)[i] - values[i]);
      norm += values[i] * values[i];
    }
    const double error = std::sqrt(difference / std::max(norm, 1e-6 * whole));
    if (!std::isnan(worst) && !(error <= worst)) worst = error;  // a NaN stays
  }
  return worst;
}

TEST(RingGptTest, LossesAndEveryGradientEqualTheDenseModelInDouble) {
  for (const GptConfig& config : configs()) {
    for (const int64_t length : {1, 7, 65, 130}) {
      for (const Mask& mask : {Mask{}, Mask{{0, 3, 4, 60, 64}, 0}, Mask{{0, 50}, 9}}) {
        ModelCase c = make_case(config, length, mask);
        const ReferenceResult expected = reference_of(c);
        for (c.layout = Layout::contiguous; c.layout <= Layout::striped;
             c.layout = Layout(int(c.layout) + 1)) {
          for (const int ring_size : {1, 2, 3, 4, 5, 8}) {
            if (length == 7 && ring_size < 4) continue;
            c.ring_size = ring_size;
            SCOPED_TRACE(testing::Message() << name_of(c.layout) << " R=" << ring_size << " T="
                                            << length << " kv heads=" << config.heads.kv_heads);
            const ModelResult actual = run_model(c);
            EXPECT_LE(error_of(actual.losses, expected.losses), kOutputTolerance);
            EXPECT_LE(worst_gradient_error(actual.gradients, expected.gradients), kGradientTolerance);
          }
        }
      }
    }
  }
}

TEST(RingGptTest, TheErrorDoesNotGrowWithTheRing) {
  ModelCase c = make_case(tiny_config(), 257, Mask{});
  const ReferenceResult expected = reference_of(c);
  c.ring_size = 2;
  const double two = worst_gradient_error(run_model(c).gradients, expected.gradients);
  c.ring_size = 8;
  const double eight = worst_gradient_error(run_model(c).gradients, expected.gradients);
  EXPECT_LE(eight, 2 * two);
}

TEST(RingGptTest, EveryRecomputePolicyGivesTheSameBits) {
  for (const GptConfig& config : configs()) {
    for (const int ring_size : {1, 3}) {
      ModelCase c = make_case(config, 100, Mask{{0, 31}, 0});
      c.ring_size = ring_size;
      c.settings.recompute = Recompute::none;
      const ModelResult kept = run_model(c);
      for (const Recompute policy : {Recompute::selective, Recompute::full}) {
        c.settings.recompute = policy;
        const ModelResult rebuilt = run_model(c);
        EXPECT_EQ(rebuilt.losses, kept.losses) << name_of(policy);
        EXPECT_EQ(rebuilt.gradients, kept.gradients) << name_of(policy);
      }
    }
  }
}

TEST(RingGptTest, ADeviceThatRunsLateGivesTheSameBits) {
  for (const Layout layout : {Layout::contiguous, Layout::zigzag, Layout::striped}) {
    for (const Recompute policy : {Recompute::none, Recompute::selective, Recompute::full}) {
      ModelCase c = make_case(tiny_config(), 90, Mask{{0, 17}, 0});
      c.layout = layout;
      c.ring_size = 4;
      c.settings.recompute = policy;
      const ModelResult prompt = run_model(c), late = run_model(c, late_backend);
      EXPECT_EQ(late.losses, prompt.losses);
      EXPECT_EQ(late.gradients, prompt.gradients);
    }
  }
}

TEST(RingGptTest, EvaluationGivesTheLossesOfTraining) {
  ModelCase c = make_case(tiny_config(), 100, Mask{{0, 31}, 0});
  for (const int ring_size : {1, 4}) {
    c.ring_size = ring_size;
    EXPECT_EQ(evaluate_model(c), run_model(c).losses);
  }
}

TEST(RingGptTest, ALossThatIsNotScoredAddsNothing) {
  ModelCase c = make_case(tiny_config(), 40, Mask{});
  c.labels.assign(c.labels.size(), -1);
  c.ring_size = 4;
  const ModelResult result = run_model(c);
  EXPECT_EQ(result.losses, std::vector<float>(40, 0.0f));
  for (const auto& [name, gradient] : result.gradients) {
    EXPECT_EQ(gradient, std::vector<float>(gradient.size(), 0.0f)) << name;
  }
}

}  // namespace
}  // namespace ringlet::test
