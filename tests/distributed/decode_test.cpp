// Generating with a KV cache must give the logits that the whole model gives.
#include <gtest/gtest.h>

#include "kernels/comm/threads.h"
#include "tests/support/compare.h"
#include "tests/support/ring_case.h"
#include "train/verify/verify_problem.h"

namespace ringlet::test {
namespace {

/// Losses of the last token of each extension, from its logits.
std::vector<float> decode(const ModelCase& c, const std::vector<int64_t>& steps, int64_t spare) {
  std::vector<float> losses;
  run_ranks({}, [&](Comm& ring, Trace& trace) {
    const std::unique_ptr<Backend> device = plain_backend(int64_t{1} << 30, trace);
    Parameters parameters(c.config, *device, {}, Parameters::Gradients::absent);
    for (const Parameter& parameter : parameters.all()) {
      upload<float>(*device, c.weights.at(parameter.name), parameter.weight);
    }
    Gpt gpt(parameters);
    KvCache cache(c.config, int64_t(c.tokens.size()) + spare, *device);
    const Tensor logits_row =
        device->arena().allocate("test", Dtype::f32, {1, c.config.vocabulary, 1, 1});
    std::vector<float> logits(c.config.vocabulary);
    for (const int64_t count : steps) {
      const std::span next = std::span(c.tokens).subspan(cache.used_tokens(), count);
      gpt.extend({*device, ring, trace}, c.settings, c.mask.window, next, cache, logits_row);
      read<float>(*device, logits_row, logits);
      double sum = 0;
      for (const float logit : logits) sum += std::exp(double(logit));
      losses.push_back(float(std::log(sum) - logits[c.labels[cache.used_tokens() - 1]]));
    }
  });
  return losses;
}

TEST(DecodeTest, TokenByTokenAndInPiecesEqualsTheWholeModel) {
  for (const auto& [qk_norm, window] : {std::pair{false, 0}, {true, 0}, {true, 11}}) {
    ModelCase c;
    c.mask.window = window;
    c.config.vocabulary = 23;
    c.config.layers = 2;
    c.config.width = 32;
    c.config.heads = {4, 2, 8};
    c.config.mlp_width = 40;
    c.config.qk_norm = qk_norm;
    c.weights = random_parameters(c.config, 4);
    fill_tokens(c, 75, 8);
    for (int32_t& label : c.labels) label = std::max(label, 0);
    const std::vector<float> whole = evaluate_model(c);
    for (const int64_t spare : {0, 60}) {
      EXPECT_LE(error_of(decode(c, std::vector<int64_t>(75, 1), spare), whole), kOutputTolerance);
      EXPECT_LE(error_of(decode(c, {65, 1, 9}, spare),
                         std::vector<float>{whole[64], whole[65], whole[74]}), kOutputTolerance);
    }
  }
}

}  // namespace
}  // namespace ringlet::test
