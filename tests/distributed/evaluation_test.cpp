// Evaluation on rings, and several of them, must give what plain loops over the tokens give.
#include "train/evaluation.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <optional>

#include "kernels/comm/threads.h"
#include "kernels/random.h"
#include "tests/support/compare.h"
#include "train/verify/verify_problem.h"
#include "tests/support/scored_tokens.h"
#include "tests/support/training_case.h"

namespace ringlet::test {
namespace {

constexpr int64_t kLength = 600;
constexpr BinTolerance kTolerance{kOutputTolerance, kOutputTolerance};

struct World {
  Layout layout = Layout::zigzag;
  int ranks = 1, ring = 1;
};

std::vector<std::string> texts_of_many_lengths() {
  std::vector<std::string> texts;
  for (const int64_t length : {900, 250, 100, 3, 1, 40, 700, 64, 600, 333}) {
    const CounterRandom random(5, uint64_t(length));
    std::string& text = texts.emplace_back();
    for (int64_t i = 0; i < length; ++i) text += char('a' + random.bits(i) % 20);
  }
  return texts;
}

/// Six windows: cut and whole documents, several in one window, padding.
struct EvaluationTest : testing::Test {
  TemporaryFolder folder;
  const Corpus corpus = Corpus::open(make_corpus_of(folder, "texts", texts_of_many_lengths()));
  const WindowReader reader{corpus, kLength};
  ModelCase model;  // on one rank: the plain way

  EvaluationTest() {
    model.config.vocabulary = corpus.vocabulary();
    model.config.layers = 2;
    model.config.width = 24;
    model.config.heads = {4, 2, 8};
    model.config.mlp_width = 40;
    model.settings = {Recompute::selective, 100, 130};
    model.weights = random_parameters(model.config, 3);
  }

  /// The window's losses by position when a query sees its own piece of [0, T) cut at `starts`.
  std::vector<float> plain_losses(const Batch& window, std::vector<int64_t> starts,
                                  int64_t sliding_window) {
    model.tokens = window.tokens;
    model.labels = window.labels;
    model.mask = {std::move(starts), sliding_window};
    return evaluate_model(model);
  }

  Batch whole_window(int64_t index) const {
    const Piece whole{0, 1, 0, kLength};
    return reader.read(index, {&whole, 1});
  }

  /// Where the window's documents begin, from the corpus alone.
  std::vector<int64_t> document_starts(const Batch& batch) const {
    std::vector<int64_t> starts{0};
    for (const int64_t offset : corpus.document_offsets()) {
      const int64_t start = offset - batch.window.first_token;
      if (start > 0 && start < kLength) starts.push_back(start);
    }
    return starts;
  }

  std::vector<ScoredToken> plain_tokens(int64_t windows, MaskRule rule, int64_t sliding_window) {
    std::vector<ScoredToken> tokens;
    for (int64_t index = 0; index < windows; ++index) {
      const Batch batch = whole_window(index);
      const std::vector<int64_t> starts = document_starts(batch);
      const std::vector<float> losses =
          plain_losses(batch, rule == MaskRule::causal ? std::vector<int64_t>{0} : starts, sliding_window);
      int64_t start = 0;
      for (int64_t p = 0; p < batch.window.token_count; ++p) {
        if (std::ranges::find(starts, p) != starts.end()) start = p;
        tokens.push_back({p, p - start, losses[p]});
      }
    }
    return tokens;
  }

  /// What `body` returns on every rank of a world.
  template <class Body>
  auto on_world(const World& world_size, const Body& body) {
    const SequenceLayout layout = make_layout(world_size.layout, kLength, world_size.ring);
    using Result = decltype(body(std::declval<const ModelRank&>()));
    std::vector<std::optional<Result>> results(world_size.ranks);
    ThreadsOptions options;
    options.ranks = world_size.ranks;
    run_ranks(options, [&](Comm& all_ranks, Trace& trace) {
      const std::unique_ptr<Backend> device = plain_backend(int64_t{1} << 30, trace);
      const std::unique_ptr<Comm> world = all_ranks.split(0);
      const std::unique_ptr<Comm> ring = world->split(world->rank() / world_size.ring);
      Parameters parameters(model.config, *device, {}, Parameters::Gradients::absent);
      for (const Parameter& parameter : parameters.all()) {
        upload<float>(*device, model.weights.at(parameter.name), parameter.weight);
      }
      Gpt gpt(parameters);
      results[world->rank()] =
          body(ModelRank{{*device, *ring, trace}, *world, layout, model.settings, gpt});
      device->synchronize();
    });
    return results;
  }
};

const std::vector<World> kWorlds{{Layout::zigzag, 4, 2},     {Layout::contiguous, 4, 2},
                                 {Layout::striped, 4, 2},    {Layout::zigzag, 3, 1},
                                 {Layout::zigzag, 1, 1},     {Layout::zigzag, 5, 5},
                                 {Layout::contiguous, 3, 3}, {Layout::striped, 6, 3}};

TEST_F(EvaluationTest, TheWindowsAreCutPaddedAndShared) {
  ASSERT_EQ(reader.plan().window_count(), 6);
  std::vector<int64_t> tokens;
  for (int64_t i = 0; i < 6; ++i) {
    tokens.push_back(reader.plan().window(i).token_count);
  }
  EXPECT_EQ(tokens, (std::vector<int64_t>{600, 550, 600, 308, 600, 333}));
}

TEST_F(EvaluationTest, EveryWorldGivesTheBinsOfAPlainLoop) {
  constexpr int64_t kWindows = 5;  // of two rings, one scores three and the other two
  for (const MaskRule rule : {MaskRule::document, MaskRule::causal}) {
    for (const int64_t sliding_window : {0, 90}) {
      const std::vector<ScoredToken> tokens = plain_tokens(kWindows, rule, sliding_window);
      for (const World& world : kWorlds) {
        SCOPED_TRACE(testing::Message() << world.ranks << " ranks, rings of " << world.ring << ' '
                                        << name_of(world.layout));
        const auto bins = on_world(world, [&](const ModelRank& rank) {
          return evaluate(rank, reader, kWindows, rule, sliding_window).bins;
        });
        expect_bins_of(tokens, kLength, *bins[0], kTolerance);
        EXPECT_TRUE(bins[0]->in_context_score().has_value());
        for (const auto& of_rank : bins) EXPECT_EQ(of_rank->to_flat(), bins[0]->to_flat());
      }
    }
  }
}

TEST_F(EvaluationTest, AWindowForOneOfTwoRingsIsCountedOnce) {
  const auto bins = on_world({Layout::zigzag, 4, 2}, [&](const ModelRank& rank) {
    return evaluate(rank, reader, 1, MaskRule::document, 0).bins;
  });
  expect_bins_of(plain_tokens(1, MaskRule::document, 0), kLength, *bins[3], kTolerance);
}

/// compare_context as its header tells it, token by token.
struct PlainComparison {
  double tokens = 0, full = 0, shortened = 0;
  std::map<std::pair<int64_t, int64_t>, std::vector<double>> differences;  // by window and block

  void add(int64_t window, int64_t block, double full_loss, double short_loss) {
    tokens += 1;
    full += full_loss;
    shortened += short_loss;
    differences[{window, block}].push_back(short_loss - full_loss);
  }
  double difference() const { return (shortened - full) / tokens; }
  /// Of a ratio of sums over blocks, sum of differences / sum of tokens.
  double standard_error() const {
    const auto blocks = double(differences.size());
    double squares = 0;
    for (const auto& [place, of_block] : differences) {
      double residual = 0;
      for (const double value : of_block) residual += value - difference();
      squares += residual * residual;
    }
    return std::sqrt(squares * blocks / (blocks - 1)) / tokens;
  }
};

std::vector<int64_t> with_cuts(std::vector<int64_t> starts, int64_t context, int64_t offset) {
  std::vector<int64_t> cut;
  for (int64_t p = 0; p < kLength; ++p) {
    const bool is_cut = p >= offset && (p - offset) % context == 0;
    if (is_cut || std::ranges::find(starts, p) != starts.end()) cut.push_back(p);
  }
  return cut;
}

TEST_F(EvaluationTest, ComparingContextsIsScoringCutWindowsAgain) {
  constexpr int64_t kWindows = 5;
  for (const auto& [rule, sliding_window, context] :
       {std::tuple{MaskRule::document, 0, 64}, {MaskRule::causal, 0, 37}, {MaskRule::causal, 50, 100}}) {
    SCOPED_TRACE(testing::Message() << "context " << context << " window " << sliding_window);
    const int64_t half = context / 2;
    PlainComparison plain;
    for (int64_t index = 0; index < kWindows; ++index) {
      const Batch batch = whole_window(index);
      const std::vector<int64_t> starts =
          rule == MaskRule::causal ? std::vector<int64_t>{0} : document_starts(batch);
      const std::vector<float> full = plain_losses(batch, starts, sliding_window);
      const std::vector<float> even = plain_losses(batch, with_cuts(starts, context, 0), sliding_window);
      const std::vector<float> odd = plain_losses(batch, with_cuts(starts, context, half), sliding_window);
      for (int64_t p = context; p < batch.window.token_count; ++p) {
        const bool late_in_even = p % context >= half;
        EXPECT_TRUE(late_in_even || (p - half) % context >= half);
        plain.add(index, p / half, full[p], late_in_even ? even[p] : odd[p]);
      }
    }
    for (const World& world : kWorlds) {
      SCOPED_TRACE(testing::Message() << world.ranks << " ranks, rings of " << world.ring << ' '
                                      << name_of(world.layout));
      const auto results = on_world(world, [&, rule = rule, sliding = sliding_window,
                                            tokens = context](const ModelRank& rank) {
        return compare_context(rank, reader, kWindows, rule, sliding, tokens);
      });
      for (const auto& result : results) {
        EXPECT_EQ(result->context, context);
        EXPECT_EQ(double(result->tokens), plain.tokens);
        EXPECT_NEAR(result->full_loss, plain.full / plain.tokens, kOutputTolerance);
        EXPECT_NEAR(result->short_loss, plain.shortened / plain.tokens, kOutputTolerance);
        EXPECT_NEAR(result->difference, plain.difference(), kOutputTolerance);
        EXPECT_NEAR(result->standard_error, plain.standard_error(),
                    1e-3 * plain.standard_error());
      }
    }
    EXPECT_GT(std::abs(plain.difference()), 1e-3);  // there is something to be wrong about
  }
}

// One window, one position behind the context: nothing tells how sure the difference is.
TEST_F(EvaluationTest, TheErrorOfOneBlockIsNotKnown) {
  const auto result = on_world({}, [&](const ModelRank& rank) {
    return compare_context(rank, reader, 1, MaskRule::causal, 0, kLength - 1);
  });
  EXPECT_EQ(result[0]->tokens, 1);
  EXPECT_TRUE(std::isnan(result[0]->standard_error));
}

TEST_F(EvaluationTest, TrainingRecordsHoldTheBinsOfTheirStep) {
  Config config = tiny_training(corpus.path(), 1, 1);
  config.run.seq_len = kLength;
  config.data.order = OrderMode::sequential;
  config.train.steps = 1;
  config.train.warmup_steps = 0;
  config.train.batch_windows = 3;
  model.config = config.gpt(corpus.vocabulary());
  Trace trace;
  const std::unique_ptr<Backend> device = plain_backend(int64_t{1} << 30, trace);
  Parameters fresh(model.config, *device, {}, Parameters::Gradients::absent);
  fresh.initialise(uint64_t(config.run.seed));
  for (const Parameter& parameter : fresh.all()) {
    std::vector<float>& values = model.weights[parameter.name];
    values.resize(parameter.weight.size());
    read<float>(*device, parameter.weight, values);
  }
  for (const MaskRule rule : {MaskRule::document, MaskRule::causal}) {
    config.data.mask = rule;
    const std::vector<ScoredToken> tokens = plain_tokens(3, rule, 0);
    for (const World& world : kWorlds) {
      SCOPED_TRACE(testing::Message() << world.ranks << " ranks, rings of " << world.ring);
      config.run.layout = world.layout;
      config.run.ranks = world.ranks;
      config.run.ring = world.ring;
      const MetricsRecord record = train_case(config).records.at(0);
      expect_list_of(tokens, &ScoredToken::position, kLength, record.loss_by_position, kTolerance);
      expect_list_of(tokens, &ScoredToken::distance, kLength, record.loss_by_distance, kTolerance);
      ASSERT_TRUE(record.in_context_score.has_value());
      EXPECT_NEAR(record.in_context_score->score(),
                  plain_mean(tokens, 475, 524).mean - plain_mean(tokens, 45, 54).mean, kOutputTolerance);
    }
  }
}

}  // namespace
}  // namespace ringlet::test
