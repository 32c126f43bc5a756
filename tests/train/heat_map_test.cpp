// Heat maps of the loss by position and step, and the power law along the position.
#include "train/report/heat_map.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <regex>

#include "kernels/check.h"
#include "train/report/position_history.h"
#include "train/report/power_fit.h"

namespace ringlet::test {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::Not;

/// Bins 0, 1, 2-3, 4-7 of a step whose loss is `level` - ln(middle) / 2.
std::vector<PositionHistory::Bin> bins_at(double level) {
  std::vector<PositionHistory::Bin> bins;
  double first = 0;
  for (const double last : {0, 1, 3, 7}) {
    bins.push_back(
        {first, last, last - first + 1, level - 0.5 * std::log(middle_context(first, last))});
    first = last + 1;
  }
  return bins;
}

PositionHistory history_of(int64_t steps) {
  PositionHistory history;
  for (int64_t step = 1; step <= steps; ++step) history.add(step, bins_at(10 - double(step)));
  return history;
}

TEST(PositionHistory, RowsAreMeansOfNeighbouringSteps) {
  const HeatMap map = history_of(5).loss_map(3, 1);
  EXPECT_THAT(map.y_edges, ElementsAre(0, 1, 3, 5));
  EXPECT_THAT(map.row_names, ElementsAre("1", "2-3", "4-5"));
  EXPECT_THAT(map.x_edges, ElementsAre(1, 2, 3, 5, 9));
  EXPECT_THAT(map.column_names, ElementsAre("1", "2", "3-4", "5-8"));
  ASSERT_EQ(map.values.size(), 3u);
  EXPECT_DOUBLE_EQ(map.values[1][0], 7.5);
  EXPECT_DOUBLE_EQ(map.values[2][1], 5.5 - 0.5 * std::log(2));
  EXPECT_EQ(table_of(map)[2][1], "7.5");
}

// The means of a row count tokens, and what is not a number hides no other.
TEST(PositionHistory, BinsCountByTheirTokens) {
  PositionHistory history;
  history.add(1, {{0, 0, 3, 1.0}});
  history.add(2, {{0, 0, 1, 5.0}});
  history.add(3, {{0, 0, 1, NAN}});
  history.add(4, {{0, 0, 0, NAN}});
  const HeatMap map = history.loss_map(1, 1);
  EXPECT_DOUBLE_EQ(map.values[0][0], 2);
  EXPECT_DOUBLE_EQ(history.loss_map(1, 4).values[0][0], 2);
  EXPECT_TRUE(std::isnan(history.loss_map(1, 5).values[0][0]));  // four tokens are too few
  PositionHistory none;
  none.add(1, {});
  EXPECT_TRUE(none.empty());
}

// A run that goes on with longer windows: its bins join, and rows from before have none of the
// later ones.
TEST(PositionHistory, LongerWindowsAddColumns) {
  PositionHistory history;
  history.add(1, {{0, 0, 1, 4.0}, {1, 1, 1, 3.0}, {2, 2, 1, 3.0}});
  history.add(2, {{0, 0, 1, 4.0}, {1, 1, 1, 3.0}, {2, 3, 2, 2.0}, {4, 4, 1, 1.0}});
  const HeatMap map = history.loss_map(2, 1);
  EXPECT_THAT(map.column_names, ElementsAre("1", "2", "3-4", "5"));
  EXPECT_TRUE(std::isnan(map.values[0][3]));
  EXPECT_EQ(map.values[1][3], 1);
}

// The loss falls by 1/2 for each e-fold of the position, whatever the bins' widths.
TEST(PositionHistory, SlopesAreAlongTheLogarithmOfThePosition) {
  const HeatMap map = history_of(4).slope_map(2, 1);
  EXPECT_EQ(map.x_edges.size(), 4u);
  for (const auto& row : map.values) {
    ASSERT_EQ(row.size(), 3u);
    for (const double slope : row) EXPECT_NEAR(slope, -0.5, 1e-12);
  }
}

HeatMap small_map(Colours colours) {
  HeatMap map = history_of(2).loss_map(2, 1);
  map.colours = colours;
  map.values = {{1, 2, 3, NAN}, {4, 5, 6, 7}};
  return map;
}

TEST(HeatMap, ColoursEndNearTheEndsOfTheValues) {
  HeatMap map = small_map(Colours::sequential);
  const ColourRange range = colour_range(map);
  EXPECT_NEAR(range.low, 1.12, 1e-9);
  EXPECT_NEAR(range.high, 6.4, 1e-9);
  map.colours = Colours::diverging;
  EXPECT_NEAR(colour_range(map).low, -6.4, 1e-9);  // 0 is in the middle
  map.values = {{2, 2}};
  EXPECT_LT(colour_range(map).low, 2);
  EXPECT_EQ(colour_of(Colours::sequential, 0), "#440154");
  EXPECT_EQ(colour_of(Colours::sequential, 2), "#fde725");
  EXPECT_EQ(colour_of(Colours::sequential, 0.05), "#461365");  // half way between two stops
  EXPECT_EQ(colour_of(Colours::diverging, 0.5), "#f7f7f7");
}

// Light is high: the luminance of the sequential colours rises all the way, so that it prints in
// grey too.
TEST(HeatMap, SequentialColoursRiseInLuminance) {
  double before = -1;
  for (double share = 0; share <= 1; share += 0.01) {
    const std::string colour = colour_of(Colours::sequential, share);
    const auto channel = [&](size_t at) { return std::stoi(colour.substr(at, 2), nullptr, 16); };
    const double luminance = 0.2126 * channel(1) + 0.7152 * channel(3) + 0.0722 * channel(5);
    EXPECT_GT(luminance, before - 0.5) << share;
    before = luminance;
  }
}

/// Every tag that opens closes, in its order; no attribute is left without its quotes.
void expect_well_formed(const std::string& svg) {
  std::vector<std::string> open;
  const std::regex tag("<(/?)([a-z]+)((?: [a-zA-Z0-9:-]+=\"[^\"<>]*\")*)(/?)>");
  std::string rest;
  auto last = svg.cbegin();
  for (auto it = std::sregex_iterator(svg.begin(), svg.end(), tag); it != std::sregex_iterator();
       ++it) {
    rest.append(last, (*it)[0].first);
    last = (*it)[0].second;
    if ((*it)[4] == "/") continue;
    if ((*it)[1] == "/") {
      ASSERT_FALSE(open.empty());
      EXPECT_EQ(open.back(), (*it)[2]);
      open.pop_back();
    } else {
      open.push_back((*it)[2]);
    }
  }
  rest.append(last, svg.cend());
  EXPECT_TRUE(open.empty());
  EXPECT_EQ(rest.find_first_of("<>"), std::string::npos) << rest.substr(0, 200);
}

TEST(HeatMap, ThePictureHasACellForEachNumber) {
  HeatMap map = small_map(Colours::sequential);
  map.title = "a <title> & 'more'";
  const std::string svg = to_svg(map);
  expect_well_formed(svg);
  int64_t cells = 0;
  for (size_t at = svg.find("<rect"); at != std::string::npos; at = svg.find("<rect", at + 1))
    ++cells;
  EXPECT_EQ(cells, 7 + 62);  // and the legend's
  EXPECT_THAT(svg, Not(HasSubstr("nan")));
  EXPECT_THAT(svg, HasSubstr("nats per token"));
  // The first cell of the lower row: at the left edge, above the axis.
  EXPECT_THAT(svg, HasSubstr("<rect x=\"76.0\" y=\"201.0\""));
  map.values = {{NAN, NAN, NAN, NAN}, {NAN, NAN, NAN, NAN}};
  EXPECT_FALSE(has_cells(map));
  EXPECT_THROW(to_svg(map), Error);
}

struct Samples {
  std::vector<double> contexts, losses;
};

Samples samples_of(double alpha, double beta, double gamma, double noise) {
  Samples samples;
  for (int i = 0; i < 12; ++i) {
    const double context = std::pow(2, i) * 0.75;
    samples.contexts.push_back(context);
    samples.losses.push_back(std::pow(alpha / context, beta) + gamma +
                             (i % 2 == 0 ? noise : -noise));
  }
  return samples;
}

TEST(PowerFit, FindsKnownParameters) {
  // The first: Llama 2 Long of 7B, as published.
  for (const auto& [alpha, beta, gamma] :
       {std::array{25.4, 0.45, 1.56}, std::array{2.0, 1.5, 0.3}, std::array{900.0, 0.1, 0.5}}) {
    const Samples samples = samples_of(alpha, beta, gamma, 0);
    const PowerFit fit = fit_power_law(samples.contexts, samples.losses);
    ASSERT_TRUE(fit.fits()) << fit.no_fit;
    EXPECT_NEAR(fit.alpha, alpha, 1e-3 * alpha);
    EXPECT_NEAR(fit.beta, beta, 1e-4 * beta);
    EXPECT_NEAR(fit.gamma, gamma, 1e-3);
    EXPECT_NEAR(fit.r_squared, 1, 1e-9);
    EXPECT_NEAR(fit.at(100), std::pow(alpha / 100, beta) + gamma, 1e-3);
  }
  const Samples noisy = samples_of(25.4, 0.45, 1.56, 0.05);
  const PowerFit fit = fit_power_law(noisy.contexts, noisy.losses);
  EXPECT_NEAR(fit.beta, 0.45, 0.05);
  EXPECT_LT(fit.r_squared, 0.9999);
  EXPECT_GT(fit.r_squared, 0.99);
}

TEST(PowerFit, SaysWhenThereIsNone) {
  const auto reason = [](const std::vector<double>& losses) {
    std::vector<double> contexts;
    for (size_t i = 0; i < losses.size(); ++i) contexts.push_back(std::pow(2, double(i)));
    return fit_power_law(contexts, losses).text();
  };
  EXPECT_THAT(reason({3, 2, 1}), HasSubstr("3 bins, 6 are needed"));
  EXPECT_THAT(reason({3, 2, 1.5, NAN, 1.2, 1.1}), HasSubstr("5 bins"));
  EXPECT_THAT(reason({1, 2, 3, 3.5, 3.7, 3.8}), HasSubstr("does not fall"));
  EXPECT_THAT(reason({6, 5, 4, 3, 2, 1}), HasSubstr("like a logarithm"));
  EXPECT_THAT(reason({9, 1, 1, 1, 1, 1}), HasSubstr("within the first positions"));
  EXPECT_THAT(reason({6.8, 4.0, 4.8, 2.6, 3.8, 1.9, 3.3, 1.6}), HasSubstr("R^2"));
  EXPECT_THAT(reason({2, 2, 2, 2, 2, 2}), HasSubstr("no fit"));
}

}  // namespace
}  // namespace ringlet::test
