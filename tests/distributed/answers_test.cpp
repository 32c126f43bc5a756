// Where a corpus has answers, they alone are trained and scored, and their accuracy is that of one
// device.
#include "train/answers.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <map>
#include <optional>

#include "kernels/comm/threads.h"
#include "tests/support/answer_corpus.h"
#include "tests/support/compare.h"
#include "tests/support/training_case.h"
#include "train/evaluation.h"
#include "train/verify/reference_gpt.h"
#include "train/verify/verify_problem.h"

namespace ringlet::test {
namespace {

constexpr int64_t kAnswerWindow = 48, kFewIds = 4;

/// In windows of 48: cut documents, several in one, padding. Answers of one token to four, on both
/// sides of the cuts of windows and of zigzag pieces (multiples of 6 on four ranks), and windows
/// without any.
struct AnswersTest : testing::Test {
  TemporaryFolder folder;
  const std::vector<int64_t> lengths{150, 20, 20, 48, 30, 10};
  std::vector<std::vector<TaskSample::Answer>> answers{{{5, 2},
                                                        {6, 2},
                                                        {7, 2},
                                                        {12, 1},
                                                        {13, 2},
                                                        {23, 9},
                                                        {24, 9},
                                                        {25, 9},
                                                        {26, 9},
                                                        {47, 5},
                                                        {48, 5},
                                                        {49, 5},
                                                        {146, 33}},
                                                       {{19, 19}},
                                                       {{1, 1}, {18, 3}, {19, 3}},
                                                       {},
                                                       {},
                                                       {{9, 4}}};
  Corpus corpus;
  WindowReader reader{corpus, kAnswerWindow};
  GptConfig gpt;
  ValuesByName weights;

  AnswersTest() : corpus(Corpus::open(mark_all_of_one())) {
    gpt.vocabulary = kFewIds;
    gpt.layers = 1;
    gpt.width = 16;
    gpt.heads = {2, 1, 8};
    gpt.mlp_width = 32;
    weights = random_parameters(gpt, 3);
  }

  /// The fifth document is answers but for its first token.
  std::string mark_all_of_one() {
    for (int64_t place = 1; place < lengths[4]; ++place)
      answers[4].push_back({place, 1 + (place / 2) % 2 * (place > 1)});
    return write_answer_corpus((folder.path() / "a.h5").string(), kFewIds, lengths, answers);
  }

  Batch whole_window(int64_t index) const {
    const Piece whole{0, 1, 0, kAnswerWindow};
    return reader.read(index, {&whole, 1});
  }

  /// Is the label of each position the one with the least loss, in double?
  std::vector<bool> right_in_double(const Batch& batch) const {
    ReferenceInput input{gpt, widened(weights), batch.tokens, {}, {}, 1};
    const Mask mask{batch.window.document_starts, 0};
    for (int64_t i = 0; i < kAnswerWindow; ++i)
      input.first_visible.push_back(mask.first_visible(i));
    std::vector<std::vector<double>> losses;
    for (int32_t id = 0; id < kFewIds; ++id) {
      input.labels.assign(size_t(kAnswerWindow), id);
      losses.push_back(reference_gpt(input).losses);
    }
    std::vector<bool> right;
    for (size_t i = 0; i < size_t(kAnswerWindow); ++i) {
      const int32_t label = batch.labels[i];
      bool best = label >= 0;
      for (int32_t id = 0; id < kFewIds; ++id) {
        best = best && (id == label || losses[size_t(label)][i] < losses[size_t(id)][i]);
      }
      right.push_back(best);
    }
    return right;
  }

  struct Count {
    int64_t answers = 0, right = 0;
  };
  struct Expected {
    Count tokens, answers;
    std::map<int64_t, Count> by_distance;  // by the first distance of the bin
  };

  /// From the answers as they were given, those whose labels stand in the first windows.
  Expected count_plainly(int64_t windows) const {
    std::map<int64_t, bool> right;  // by token
    for (int64_t index = 0; index < windows; ++index) {
      const Batch batch = whole_window(index);
      const std::vector<bool> of_window = right_in_double(batch);
      for (int64_t i = 0; i < kAnswerWindow; ++i) {
        if (batch.labels[size_t(i)] >= 0)
          right[batch.window.first_token + i + 1] = of_window[size_t(i)];
      }
    }
    Expected result;
    for (const auto& [token, is_right] : right) {
      ++result.tokens.answers;
      result.tokens.right += is_right;
    }
    int64_t document_start = 0;
    for (size_t document = 0; document < lengths.size(); document_start += lengths[document++]) {
      const auto& list = answers[document];
      for (size_t i = 0; i < list.size();) {
        size_t end = i + 1;
        while (end < list.size() && list[end].distance == list[i].distance &&
               list[end].place == list[end - 1].place + 1) {
          ++end;
        }
        bool whole = true, all_right = true;
        for (; i < end; ++i) {
          const auto found = right.find(document_start + list[i].place);
          whole = whole && found != right.end();
          all_right = all_right && whole && found->second;
        }
        if (!whole) continue;
        const auto bin = int64_t(std::bit_floor(uint64_t(list[end - 1].distance)));
        for (Count* count : {&result.answers, &result.by_distance[bin]}) {
          ++count->answers;
          count->right += all_right;
        }
      }
    }
    return result;
  }

  Evaluation evaluate_on(Layout layout_kind, int ranks, int ring_size, int64_t windows) {
    const SequenceLayout layout = make_layout(layout_kind, kAnswerWindow, ring_size);
    const StepSettings settings{Recompute::selective, 5, 7};
    std::vector<std::optional<Evaluation>> results(static_cast<size_t>(ranks));
    ThreadsOptions options;
    options.ranks = ranks;
    run_ranks(options, [&](Comm& all_ranks, Trace& trace) {
      const std::unique_ptr<Backend> device = plain_backend(int64_t{1} << 26, trace);
      const std::unique_ptr<Comm> world = all_ranks.split(0);
      const std::unique_ptr<Comm> ring = world->split(world->rank() / ring_size);
      Parameters parameters(gpt, *device, {}, Parameters::Gradients::absent);
      for (const Parameter& parameter : parameters.all()) {
        upload<float>(*device, weights.at(parameter.name), parameter.weight);
      }
      Gpt model(parameters);
      results[size_t(world->rank())] =
          evaluate(ModelRank{{*device, *ring, trace}, *world, layout, settings, model}, reader,
                   windows, MaskRule::document, 0);
      device->synchronize();
    });
    for (const auto& result : results) {
      EXPECT_EQ(result->answers->answers().mean, results[0]->answers->answers().mean)
          << "ranks differ";
    }
    return *results[0];
  }
};

void expect_answer_share(const MeanLoss& actual, int64_t count, int64_t right) {
  const double share = double(right) / double(count);
  EXPECT_EQ(actual.count, count);
  EXPECT_DOUBLE_EQ(actual.mean, share);
  if (count < 2) return;
  EXPECT_DOUBLE_EQ(actual.standard_error, std::sqrt(share * (1 - share) / double(count - 1)));
}

TEST_F(AnswersTest, AccuracyIsThatOfTheDenseModelOnAnyRing) {
  const int64_t all = reader.plan().window_count();
  for (const int64_t windows : {int64_t{1}, int64_t{3}, all}) {
    const Expected expected = count_plainly(windows);
    if (windows == all) {
      int64_t given = 0;
      for (const auto& list : answers) given += std::ssize(list);
      EXPECT_EQ(expected.tokens.answers, given);
      EXPECT_GT(expected.answers.right, 1);
      EXPECT_GT(expected.answers.answers - expected.answers.right, 3);
    }
    for (const auto& [layout, ranks, ring] : {std::tuple{Layout::zigzag, 1, 1},
                                              {Layout::zigzag, 2, 2},
                                              {Layout::zigzag, 3, 3},
                                              {Layout::zigzag, 4, 4},
                                              {Layout::striped, 4, 4},
                                              {Layout::contiguous, 4, 2}}) {
      SCOPED_TRACE(testing::Message()
                   << windows << " windows, " << ranks << " ranks " << name_of(layout));
      const Evaluation actual = evaluate_on(layout, ranks, ring, windows);
      EXPECT_EQ(actual.bins.count(), expected.tokens.answers);
      ASSERT_TRUE(actual.answers.has_value());
      expect_answer_share(actual.answers->tokens(), expected.tokens.answers, expected.tokens.right);
      expect_answer_share(actual.answers->answers(), expected.answers.answers,
                          expected.answers.right);
      for (const auto& bin : actual.answers->by_distance()) {
        const auto found = expected.by_distance.find(bin.first);
        if (bin.loss.count == 0) {
          EXPECT_TRUE(found == expected.by_distance.end()) << bin.first;
          continue;
        }
        ASSERT_TRUE(found != expected.by_distance.end()) << bin.first;
        EXPECT_EQ(bin.last, 2 * bin.first - 1);
        expect_answer_share(bin.loss, found->second.answers, found->second.right);
      }
    }
  }
}

// Equal logits are no answer.
TEST_F(AnswersTest, TiesAreNotRight) {
  for (auto& [name, values] : weights)
    std::ranges::fill(values, name == "embedding.weight" ? 1.0f : 0.0f);
  const Evaluation actual = evaluate_on(Layout::zigzag, 2, 2, 2);
  EXPECT_GT(actual.answers->tokens().count, 0);
  EXPECT_EQ(actual.answers->tokens().mean, 0);
}

// One step on one window that has no answers: no loss, no gradient, and nothing is divided by zero.
TEST_F(AnswersTest, AStepWithoutAnswersTrainsNothing) {
  Config config = tiny_training(corpus.path(), 2, 2);
  config.run.seq_len = kAnswerWindow;
  config.data.order = OrderMode::sequential;
  config.train.batch_windows = 1;
  config.train.weight_decay = 0.1;
  config.train.schedule = ScheduleShape::constant;  // two steps of two are two of three
  config.train.steps = 3;
  std::vector<int64_t> labels;
  for (int64_t i = 0; i < config.train.steps; ++i) labels.push_back(reader.label_count(i));
  ASSERT_GT(labels[0], 0);
  ASSERT_EQ(labels[2], 0);
  config.train.warmup_steps = 0;
  const Trained trained = train_case(config);
  EXPECT_EQ(trained.end, RunEnd::finished);
  EXPECT_EQ(trained.records[2].skipped_steps, 0);
  EXPECT_GT(trained.gradient_norms()[0], 0);
  EXPECT_EQ(trained.gradient_norms()[2], 0);
  EXPECT_EQ(trained.records[2].tokens, 3 * kAnswerWindow);
  config.train.steps = 2;
  const Trained before = train_case(config);
  EXPECT_EQ(trained.weights, before.weights);
  EXPECT_EQ(trained.first_moments, before.first_moments);
}

}  // namespace
}  // namespace ringlet::test
