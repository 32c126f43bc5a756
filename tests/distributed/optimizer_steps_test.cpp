// Twenty optimizer steps on a ring, with sharded state, against plain AdamW in double and against PyTorch.
#include <gtest/gtest.h>

#include "kernels/comm/threads.h"
#include "tests/support/compare.h"
#include "tests/support/ring_case.h"
#include "tests/support/torch_oracle.h"
#include "train/optimizer.h"
#include "train/verify/verify_problem.h"

namespace ringlet::test {
namespace {

constexpr double kTrainedTolerance = 1e-4;  // relative L2 of weights, relative losses, after 20 steps
constexpr double kLossTolerance = 1e-5;

OracleCase make_case(bool qk_norm, bool tied_head) {
  OracleCase c;
  c.config.vocabulary = 29;
  c.config.layers = 2;
  c.config.width = 24;
  c.config.heads = {4, 2, 8};
  c.config.mlp_width = 36;
  c.config.qk_norm = qk_norm;
  c.config.tied_head = tied_head;
  c.config.rope_base = 500;
  c.parameters = random_parameters(c.config, 9);
  c.mask = Mask{{0, 40, 41}, 0};
  ModelCase tokens;
  tokens.config = c.config;
  fill_tokens(tokens, 97, 21);
  c.tokens = tokens.tokens;
  c.labels = tokens.labels;
  c.loss_scale = 1.0 / 84;  // tokens that are scored
  c.adamw.learning_rate = 3e-3f;
  c.adamw.epsilon = 1e-4f;  // a smaller one magnifies rounding where a gradient nearly vanishes
  c.clip = 1;
  c.steps = 20;
  return c;
}

struct RingTraining {
  std::vector<double> losses, norms;
  ValuesByName gradients, weights;  // gradients of the first step
};

double scaled_loss(Backend& device, Comm& ring, const Step& step, double scale) {
  std::vector<float> rows(step.rows());
  read<float>(device, step.losses, rows);
  double sum = 0;
  for (const float loss : rows) sum += loss;
  const Tensor total = device.arena().allocate("test", Dtype::f64, {1, 1, 1, 1});
  upload<double>(device, std::span<const double>(&sum, 1), total);
  device.wait(ring.all_reduce(total, device.record()));
  read<double>(device, total, std::span<double>(&sum, 1));
  return sum * scale;
}

ValuesByName host_values(const Parameters& parameters, Tensor Parameter::*member) {
  ValuesByName values;
  for (const Parameter& parameter : parameters.all()) {
    std::vector<float>& list = values[parameter.name];
    list.resize(parameter.weight.size());
    read<float>(parameters.device(), parameter.*member, list);
  }
  return values;
}

RingTraining train_on_ring(const OracleCase& c, Layout kind, int ring_size) {
  RingTraining result;
  const SequenceLayout layout = make_layout(kind, int64_t(c.tokens.size()), ring_size);
  ThreadsOptions options;
  options.ranks = ring_size;
  run_ranks(options, [&](Comm& ring, Trace& trace) {
    const std::unique_ptr<Backend> device = plain_backend(int64_t{1} << 30, trace);
    Parameters parameters(c.config, *device, {ring.rank(), ring_size}, Parameters::Gradients::present);
    for (const Parameter& parameter : parameters.all()) {
      upload<float>(*device, c.parameters.at(parameter.name), parameter.weight);
    }
    Gpt gpt(parameters);
    ShardedAdamW optimizer(parameters, ring);
    const std::vector<Piece>& pieces = layout.ranks[ring.rank()];
    for (int i = 1; i <= c.steps; ++i) {
      const ArenaScope scope(device->arena());
      Step step({*device, ring, trace}, {Recompute::selective, 16, 16}, Pass::training, layout, c.mask,
                c.config.rope_base, c.config.heads.head_dim, take_rows(c.tokens, pieces),
                take_rows(c.labels, pieces));
      parameters.zero_gradients();
      gpt.train(step, float(c.loss_scale), [&](int64_t bucket) { optimizer.start_reduce(bucket); });
      double squares = optimizer.finish_reduce();
      const Tensor total = device->arena().allocate("test", Dtype::f64, {1, 1, 1, 1});
      upload<double>(*device, std::span<const double>(&squares, 1), total);
      device->wait(ring.all_reduce(total, device->record()));
      read<double>(*device, total, std::span<double>(&squares, 1));
      const double loss = scaled_loss(*device, ring, step, c.loss_scale), norm = std::sqrt(squares);
      if (i == 1) {
        for (const Bucket& bucket : parameters.buckets()) {
          const Tensor shard = bucket.gradients.slice(ring.rank() * bucket.shard_elements,
                                                      bucket.shard_elements);
          device->wait(ring.all_gather(shard, bucket.gradients, device->record()));
        }
        if (ring.rank() == 0) result.gradients = host_values(parameters, &Parameter::gradient);
      }
      AdamW settings = c.adamw;
      settings.step = i;
      settings.gradient_scale = float(std::min(1.0, c.clip / norm));
      optimizer.update(settings);
      if (ring.rank() == 0) {
        result.losses.push_back(loss);
        result.norms.push_back(norm);
      }
    }
    if (ring.rank() == 0) result.weights = host_values(parameters, &Parameter::weight);
  });
  return result;
}

void expect_equal(const RingTraining& actual, const ReferenceResult& first, const Values& weights,
                  const std::vector<double>& losses) {
  EXPECT_NEAR(actual.losses[0], first.loss, kLossTolerance * first.loss);
  for (const auto& [name, gradient] : first.gradients) {
    EXPECT_LE(error_of(actual.gradients.at(name), gradient), kGradientTolerance) << name;
  }
  ASSERT_EQ(actual.losses.size(), losses.size());
  for (size_t i = 0; i < losses.size(); ++i) {
    EXPECT_NEAR(actual.losses[i], losses[i], kTrainedTolerance * losses[i]) << "step " << i + 1;
  }
  for (const auto& [name, values] : weights) {
    EXPECT_LE(error_of(actual.weights.at(name), values), kTrainedTolerance) << name;
  }
}

TEST(OptimizerStepsTest, ShardedOnAnyRingEqualsPlainAdamWInDouble) {
  for (const bool qk_norm : {false, true}) {
    const OracleCase c = make_case(qk_norm, qk_norm);
    ReferenceInput input = c.reference_input();
    const ReferenceResult first = reference_gpt(input);
    ReferenceOptimizer plain{input.parameters, {}, {}};
    std::vector<double> losses;
    for (int i = 1; i <= c.steps; ++i) {
      input.parameters = plain.weights;
      const ReferenceResult result = reference_gpt(input);
      losses.push_back(result.loss);
      AdamW settings = c.adamw;
      settings.step = i;
      reference_adamw(c.config, settings, c.clip, result.gradients, plain);
    }
    for (const int ring_size : {1, 2, 3, 4, 5, 8}) {
      SCOPED_TRACE(testing::Message() << "ring of " << ring_size);
      expect_equal(train_on_ring(c, Layout::zigzag, ring_size), first, plain.weights, losses);
    }
  }
}

TEST(OptimizerStepsTest, ARingOfFourEqualsPyTorch) {
  for (const bool qk_norm : {false, true}) {
    const OracleCase c = make_case(qk_norm, !qk_norm);
    const std::optional<OracleResult> torch = run_oracle(c);
    if (!torch) GTEST_SKIP() << "no python3 here can import torch (RINGLET_PYTHON names another)";
    for (const Layout layout : {Layout::contiguous, Layout::zigzag, Layout::striped}) {
      SCOPED_TRACE(name_of(layout));
      expect_equal(train_on_ring(c, layout, 4), torch->first, torch->weights, torch->losses);
    }
  }
}

}  // namespace
}  // namespace ringlet::test
