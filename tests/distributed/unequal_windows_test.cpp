// The loss of a step is one mean over the tokens of all its windows, however unequal they are, on any world.
#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>

#include "tests/support/answer_corpus.h"
#include "tests/support/compare.h"
#include "train/verify/reference_gpt.h"
#include "train/verify/verify_problem.h"
#include "tests/support/training_case.h"
#include "train/commands/prepare.h"

namespace ringlet::test {
namespace {

constexpr double kRelativeLossTolerance = 1e-5;

/// Documents of 130, 20 and 70 letters. In windows of 96: 96 tokens, then 54 (the third document would be
/// cut), then 70.
std::string short_corpus(const TemporaryFolder& folder) {
  const std::filesystem::path texts = folder.path() / "texts";
  std::filesystem::create_directory(texts);
  int document = 0;
  for (const int length : {130, 20, 70}) {
    std::ofstream file(texts / (std::to_string(++document) + ".txt"));
    for (int i = 0; i < length; ++i) file << char('a' + (i * i + 3 * document * i) % 23);
  }
  PrepareOptions options;
  options.input.paths = {texts.string()};
  options.output = (folder.path() / "short.h5").string();
  prepare(options);
  return options.output;
}

Values initial_weights(const Config& config, const GptConfig& gpt) {
  Trace trace;
  const std::unique_ptr<Backend> device = plain_backend(int64_t{1} << 26, trace);
  Parameters parameters(gpt, *device, {}, Parameters::Gradients::absent);
  parameters.initialise(uint64_t(config.run.seed));
  ValuesByName weights;
  for (const Parameter& parameter : parameters.all()) {
    weights[parameter.name].resize(parameter.weight.size());
    read<float>(*device, parameter.weight, weights[parameter.name]);
  }
  return widened(weights);
}

ReferenceInput window_input(const WindowReader& windows, int64_t index) {
  const int64_t length = windows.plan().window_tokens();
  const std::vector<Piece> whole{{0, 1, 0, length}};
  const Batch batch = windows.read(index, whole);
  const Mask mask{batch.window.document_starts, 0};
  ReferenceInput input;
  input.tokens = batch.tokens;
  input.labels = batch.labels;
  for (int64_t i = 0; i < length; ++i) input.first_visible.push_back(mask.first_visible(i));
  return input;
}

/// All windows of the corpus as one batch: the mean loss over their tokens, and its gradient.
ReferenceResult mean_over_tokens(const Config& config, int64_t scored_tokens) {
  const Corpus corpus = Corpus::open(config.data.corpus);
  const WindowReader windows(corpus, config.run.seq_len);
  std::vector<ReferenceInput> inputs;
  int64_t tokens = 0;
  for (int64_t i = 0; i < windows.plan().window_count(); ++i) {
    inputs.push_back(window_input(windows, i));
    tokens += std::ranges::count_if(inputs.back().labels, [](int32_t label) { return label >= 0; });
  }
  EXPECT_EQ(inputs.size(), 3u);
  EXPECT_EQ(tokens, scored_tokens);
  ReferenceResult sum;
  for (ReferenceInput& input : inputs) {
    input.config = config.gpt(corpus.vocabulary());
    input.parameters = initial_weights(config, input.config);
    input.loss_scale = 1.0 / double(tokens);
    const ReferenceResult result = reference_gpt(input);
    sum.loss += result.loss;
    for (const auto& [name, gradient] : result.gradients) {
      std::vector<double>& total = sum.gradients[name];
      total.resize(gradient.size());
      for (size_t i = 0; i < gradient.size(); ++i) total[i] += gradient[i];
    }
  }
  return sum;
}

/// On worlds of many shapes; the corpus has three windows, of 96 + 54 + 70 tokens.
void expect_one_mean(const std::string& corpus, int64_t scored_tokens) {
  Config config = tiny_training(corpus, 1, 1);
  config.train.steps = 1;
  config.train.batch_windows = 3;  // on two rings: two windows and one
  config.train.clip_norm = 0;
  const ReferenceResult expected = mean_over_tokens(config, scored_tokens);
  double squares = 0;
  for (const auto& [name, gradient] : expected.gradients)
    for (const double value : gradient) squares += value * value;

  for (const auto& [ranks, ring] : {std::pair{1, 1}, {2, 2}, {2, 1}, {4, 2}}) {
    SCOPED_TRACE(testing::Message() << ranks << " ranks in rings of " << ring);
    config.run.ranks = ranks;
    config.run.ring = ring;
    const Trained trained = train_case(config);
    EXPECT_NEAR(trained.losses()[0], expected.loss, kRelativeLossTolerance * expected.loss);
    EXPECT_NEAR(trained.gradient_norms()[0], std::sqrt(squares), kGradientTolerance * std::sqrt(squares));
    EXPECT_EQ(trained.records[0].tokens, 96 + 54 + 70);
    for (const auto& [name, gradient] : expected.gradients) {
      std::vector<double> actual;  // the first moment of the first step is (1 - beta1) * gradient
      for (const float value : trained.first_moments.at(name)) {
        actual.push_back(value / (1 - config.train.beta1));
      }
      EXPECT_LE(error_of(actual, gradient), kGradientTolerance) << name;
    }
  }
}

TEST(UnequalWindowsTest, AStepIsOneMeanOverTheTokensOfItsWindows) {
  const TemporaryFolder folder;
  expect_one_mean(short_corpus(folder), 96 + 54 + 70);
}

// Four in the first window, none in the second, two in the third.
TEST(UnequalWindowsTest, OfAnswersTheyAloneAreTheMean) {
  const TemporaryFolder folder;
  const std::string path = (folder.path() / "answers.h5").string();
  expect_one_mean(write_answer_corpus(path, 23, {130, 20, 70},
                                      {{{1, 1}, {47, 9}, {48, 9}, {96, 2}}, {}, {{40, 40}, {69, 1}}}),
                  6);
}

}  // namespace
}  // namespace ringlet::test
