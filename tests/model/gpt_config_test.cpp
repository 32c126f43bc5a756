#include "model/gpt_config.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>
#include <numeric>

#include "kernels/check.h"

namespace ringlet {
namespace {

GptConfig small_config() {
  GptConfig config;
  config.vocabulary = 11;
  config.layers = 2;
  config.width = 12;
  config.heads = {6, 2, 8};
  config.mlp_width = 20;
  return config;
}

std::vector<std::string> names_of(const GptConfig& config) {
  std::vector<std::string> names;
  for (const ParameterShape& parameter : parameter_shapes(config)) names.push_back(parameter.name);
  return names;
}

TEST(ParameterShapes, NameEveryParameterOfALayerTogether) {
  GptConfig config = small_config();
  config.layers = 1;
  config.qk_norm = true;
  config.tied_head = false;
  EXPECT_EQ(names_of(config),
            (std::vector<std::string>{
                "embedding.weight", "blocks.0.attention_norm.weight",
                "blocks.0.attention.qkv.weight", "blocks.0.attention.q_norm.weight",
                "blocks.0.attention.k_norm.weight", "blocks.0.attention.output.weight",
                "blocks.0.mlp_norm.weight", "blocks.0.mlp.gate_up.weight",
                "blocks.0.mlp.down.weight", "final_norm.weight", "head.weight"}));
}

TEST(ParameterShapes, AreOutByIn) {
  const std::vector<ParameterShape> all = parameter_shapes(small_config());
  ASSERT_EQ(all.size(), 1u + 2 * 6 + 1);
  EXPECT_EQ(all[0].shape, (std::vector<int64_t>{11, 12}));
  EXPECT_EQ(all[1].shape, (std::vector<int64_t>{12}));
  EXPECT_EQ(all[2].shape, (std::vector<int64_t>{(6 + 2 + 2) * 8, 12}));
  EXPECT_EQ(all[3].shape, (std::vector<int64_t>{12, 48}));
  EXPECT_EQ(all[5].shape, (std::vector<int64_t>{40, 12}));
  EXPECT_EQ(all[6].shape, (std::vector<int64_t>{12, 20}));
  EXPECT_EQ(all[8].name, "blocks.1.attention.qkv.weight");
  EXPECT_EQ(all[2].size(), 80 * 12);
}

TEST(ParameterCount, MatchesACountByHand) {
  GptConfig config = small_config();
  const int64_t block = 12 + 80 * 12 + 12 * 48 + 12 + 40 * 12 + 12 * 20;
  EXPECT_EQ(parameter_count(config), 11 * 12 + 2 * block + 12);
  config.tied_head = false;
  config.qk_norm = true;
  EXPECT_EQ(parameter_count(config), 2 * 11 * 12 + 2 * (block + 16) + 12);
}

TEST(Validate, AcceptsWhatCanBe) {
  EXPECT_NO_THROW(GptConfig{}.validate());
  EXPECT_NO_THROW(small_config().validate());
}

TEST(Validate, NamesTheValueThatCannotBe) {
  using Change = std::function<void(GptConfig&)>;
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const std::vector<std::pair<const char*, Change>> changes{
      {"vocabulary", [](GptConfig& c) { c.vocabulary = 0; }},
      {"vocabulary", [](GptConfig& c) { c.vocabulary = int64_t{1} << 31; }},
      {"layers", [](GptConfig& c) { c.layers = 0; }},
      {"width", [](GptConfig& c) { c.width = -1; }},
      {"heads", [](GptConfig& c) { c.heads.heads = 0; }},
      {"kv_heads", [](GptConfig& c) { c.heads.kv_heads = 0; }},
      {"kv_heads", [](GptConfig& c) { c.heads.kv_heads = 4; }},
      {"kv_heads", [](GptConfig& c) { c.heads.kv_heads = 12; }},
      {"head_dim", [](GptConfig& c) { c.heads.head_dim = 12; }},
      {"mlp_width", [](GptConfig& c) { c.mlp_width = int64_t{1} << 60; }},
      {"norm_epsilon", [](GptConfig& c) { c.norm_epsilon = 0; }},
      {"norm_epsilon", [=](GptConfig& c) { c.norm_epsilon = float(nan); }},
      {"rope_base", [](GptConfig& c) { c.rope_base = 1; }},
      {"rope_base", [=](GptConfig& c) { c.rope_base = nan; }},
      {"rope_base", [](GptConfig& c) { c.rope_base = std::numeric_limits<double>::infinity(); }}};
  for (const auto& [name, change] : changes) {
    GptConfig config = small_config();
    change(config);
    try {
      config.validate();
      ADD_FAILURE() << name << " was accepted";
    } catch (const UsageError& error) {
      EXPECT_NE(std::string(error.what()).find(name), std::string::npos) << error.what();
      EXPECT_FALSE(error.advice.empty());
    }
  }
}

/// The criterion as it is written, without any bound.
bool never_negative_by_trying_all(double base, int64_t head_dim, int64_t context) {
  for (int64_t m = 0; m < context; ++m) {
    double sum = 0;
    for (int64_t i = 0; i < head_dim / 2; ++i) {
      sum += std::cos(double(m) * std::pow(base, -2.0 * double(i) / double(head_dim)));
    }
    if (!(sum >= 0)) return false;
  }
  return true;
}

TEST(AutoRopeBase, IsTheFirstOfTheGridThatMeetsTheCriterion) {
  for (const int64_t head_dim : {8, 16, 32, 64, 128}) {
    for (const int64_t context : {64, 600, 1000, 1777}) {
      double expected = 10'000;
      for (int step = 0; !never_negative_by_trying_all(expected, head_dim, context);) {
        expected = std::pow(10.0, 4 + 0.02 * ++step);
      }
      EXPECT_DOUBLE_EQ(auto_rope_base(head_dim, context), expected)
          << "head_dim " << head_dim << ", context " << context;
    }
  }
}

// The fit of arXiv:2405.14591 is 0.0424 * context^1.628 at head_dim 128; small heads need far more.
TEST(AutoRopeBase, ReproducesPublishedBounds) {
  struct Known {
    int64_t head_dim, context;
    double base;
  };
  for (const Known& known : std::vector<Known>{{128, 4096, 2.9e4},
                                               {128, 8192, 9.1e4},
                                               {128, 16384, 3.6e5},
                                               {128, 65536, 2.9e6},
                                               {64, 4096, 1.4e5},
                                               {64, 8192, 5e5},
                                               {32, 1024, 6e4},
                                               {32, 4096, 1.3e6},
                                               {32, 8192, 7.2e6},
                                               {32, 16384, 2.7e7},
                                               {32, 65536, 9e8},
                                               {16, 4096, 1.4e7},
                                               {16, 16384, 5e8}}) {
    const double base = auto_rope_base(known.head_dim, known.context);
    EXPECT_NEAR(std::log10(base), std::log10(known.base), 0.1)
        << "head_dim " << known.head_dim << ", context " << known.context << ": " << base;
  }
}

TEST(AutoRopeBase, TenThousandIsTheLeastAndGoodUpToAKnownLength) {
  EXPECT_EQ(auto_rope_base(128, 1), 10'000);
  for (const auto& [head_dim, longest] :
       std::vector<std::pair<int64_t, int64_t>>{{128, 1707}, {64, 725}, {32, 474}, {16, 91}}) {
    EXPECT_EQ(auto_rope_base(head_dim, longest), 10'000) << head_dim;
    EXPECT_GT(auto_rope_base(head_dim, longest + 1), 10'000) << head_dim;
  }
}

TEST(AutoRopeBase, MeetsTheCriterionAtAMillion) {
  const double base = auto_rope_base(16, 1 << 20);
  EXPECT_TRUE(never_negative_by_trying_all(base, 16, 1 << 20));
  EXPECT_FALSE(never_negative_by_trying_all(base / std::pow(10.0, 0.02), 16, 1 << 20));
}

}  // namespace
}  // namespace ringlet
