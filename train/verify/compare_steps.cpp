#include "train/verify/compare_steps.h"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>

namespace ringlet {
namespace {

// bf16 keeps 8 bits: every activation is off by up to 4e-3 of itself, after a few layers by a few times that; a row of
// a gradient, in which much cancels, by more.
constexpr Tolerances kBf16{.loss = 0.1, .mean_loss = 1e-2, .output = 0.1, .row_gradient = 0.5,
                           .gradient = 0.1, .cosine = 5e-3, .norm = 3e-2, .weights = 0.2};
// What vanishes in exact arithmetic (a lone key's softmax moves no query and no key) is measured against a share of
// something that does not: of the whole gradient, of dV.
constexpr double kVanishing = 1e-3;
constexpr double kVanishingRow = 1e-2;
constexpr double kVanishingStep = 0.1;  // of the learning rate, which is the largest step

/// There should be none of these lines.
Deviation none_of(const char* quantity, const std::vector<std::string>& lines) {
  return {quantity, lines.empty() ? "" : lines.front(), double(lines.size()), 0.5};
}

void take_worse(Deviation& worst, double error, const std::string& where) {
  const Deviation here{worst.quantity, where, error, worst.tolerance};
  if (worse(here, worst)) worst = here;
}

/// The row of a parameter that differs most.
std::string element_of(const ParameterShape& shape, const std::vector<double>& actual,
                       const std::vector<double>& expected) {
  if (shape.shape.size() != 2) return shape.name;
  const RowError row = worst_row(actual, expected, shape.shape[1]);
  return fmt::format("{}, row {}", shape.name, row.row);
}

class Comparison {
 public:
  Comparison(const VerifyProblem& problem, const RingSetup& setup, const RingStep& actual,
             const StepValues& expected)
      : problem_(problem),
        setup_(setup),
        layout_(setup.sequence_layout(problem.length())),
        actual_(actual.values),
        step_(actual),
        expected_(expected),
        tolerances_(tolerances_of(problem.gpt.dtype)) {}

  std::vector<Deviation> run() {
    const auto layers = int64_t(actual_.windows.front().layers.size());
    for (int64_t layer = 0; layer < layers; ++layer) compare_forward(layer);
    compare_losses("loss", &WindowValues::losses);
    compare_number("train loss", actual_.train_loss, expected_.train_loss, tolerances_.mean_loss);
    if (layers > 0) {
      compare_losses("evaluation loss", &WindowValues::eval_losses);
      compare_number("mean evaluation loss", actual_.eval_loss, expected_.eval_loss,
                     tolerances_.mean_loss);
      keep(none_of("leak", step_.leaks));
    }
    found_.insert(found_.end(), step_.samples.begin(), step_.samples.end());
    for (int64_t layer = layers - 1; layer >= 0; --layer) compare_backward(layer);
    if (layers > 0) {
      compare_rows("input gradient", "", problem_.gpt.width, problem_.gpt.width, tolerances_.row_gradient,
                   [](const WindowValues& window) -> auto& { return window.d_input; },
                   [](const WindowValues&) { return 0.0; });
    }
    compare_gradients();
    compare_number("gradient norm", actual_.gradient_norm, expected_.gradient_norm, tolerances_.norm);
    compare_weights();
    keep(none_of("weights of ranks", step_.strays));
    return std::move(found_);
  }

 private:
  int64_t rank_of(int64_t window, int64_t position) const {
    return window % setup_.rings * setup_.ring_size + layout_.rank_of(position);
  }

  std::string place(int64_t window, int64_t position) const {
    const std::string of_window =
        problem_.windows.size() > 1 ? fmt::format(" of window {}", window) : "";
    return fmt::format("position {}{} (rank {})", position, of_window, rank_of(window, position));
  }

  void keep(Deviation found) { found_.push_back(std::move(found)); }

  void compare_number(const char* quantity, double actual, double expected, double tolerance) {
    const double scale = std::max(std::abs(expected), 1e-30);
    keep({quantity, fmt::format("{:.9g}, should be {:.9g}", actual, expected),
          std::abs(actual - expected) / scale, tolerance});
  }

  void compare_losses(const char* quantity, std::vector<double> WindowValues::*losses) {
    Deviation worst{quantity, "", 0, tolerances_.loss};
    for (size_t w = 0; w < expected_.windows.size(); ++w) {
      const std::vector<double>& actual = actual_.windows[w].*losses;
      const std::vector<double>& expected = expected_.windows[w].*losses;
      for (size_t i = 0; i < expected.size(); ++i) {
        const double scale = std::max(1.0, std::abs(expected[i]));
        Deviation here = worst;
        here.error = std::abs(actual[i] - expected[i]) / scale;
        if (!worse(here, worst)) continue;
        here.where = place(int64_t(w), int64_t(i));
        worst = here;
      }
    }
    keep(worst);
  }

  /// values(window): [T, width]; a head is `head_width` columns.
  template <class ValuesOf, class FloorOf>
  void compare_rows(const char* quantity, const std::string& layer, int64_t width,
                    int64_t head_width, double tolerance, const ValuesOf& values,
                    const FloorOf& floor) {
    Deviation worst{quantity, "", 0, tolerance};
    for (size_t w = 0; w < expected_.windows.size(); ++w) {
      const RowError row = worst_row(values(actual_.windows[w]), values(expected_.windows[w]), width,
                                     floor(expected_.windows[w]));
      Deviation here = worst;
      here.error = row.error;
      if (row.row < 0 || !worse(here, worst)) continue;
      const std::string head =
          head_width < width ? fmt::format("head {}, ", row.column / head_width) : "";
      here.where = layer + head + place(int64_t(w), row.row);
      worst = here;
    }
    keep(worst);
  }

  void compare_layer(const char* quantity, int64_t layer, int64_t heads, int64_t head_width,
                     double tolerance, std::vector<double> LayerValues::*member) {
    compare_rows(quantity, fmt::format("layer {}, ", layer), heads * head_width, head_width, tolerance,
                 [=](const WindowValues& window) -> auto& {
                   return window.layers[size_t(layer)].*member;
                 },
                 [=, this](const WindowValues& window) {
                   const bool through_softmax =
                       member == &LayerValues::dq || member == &LayerValues::dk;
                   return through_softmax
                              ? kVanishingRow * typical_norm(window.layers[size_t(layer)].dv,
                                                             problem_.gpt.heads.kv_heads *
                                                                 problem_.gpt.heads.head_dim)
                              : 0.0;
                 });
  }

  void compare_forward(int64_t layer) {
    const auto [heads, kv_heads, dim] = problem_.gpt.heads;
    compare_layer("attention output", layer, heads, dim, tolerances_.output, &LayerValues::output);
    compare_layer("LSE", layer, heads, 1, tolerances_.output, &LayerValues::lse);
  }

  void compare_backward(int64_t layer) {
    const auto [heads, kv_heads, dim] = problem_.gpt.heads;
    const double tolerance = tolerances_.row_gradient;
    compare_layer("dV", layer, kv_heads, dim, tolerance, &LayerValues::dv);
    compare_layer("dK", layer, kv_heads, dim, tolerance, &LayerValues::dk);
    compare_layer("dQ", layer, heads, dim, tolerance, &LayerValues::dq);
  }

  void compare_gradients() {
    GradientDeviations worst = gradient_deviations(problem_.gpt, actual_.gradients, expected_.gradients);
    keep(std::move(worst.error));
    keep(std::move(worst.direction));
  }

  void compare_weights() {
    Deviation error{"next weights", "", 0, tolerances_.weights};
    for (const ParameterShape& shape : parameter_shapes(problem_.gpt)) {
      const std::vector<double>& actual = actual_.next_weights.at(shape.name);
      const std::vector<double>& expected = expected_.next_weights.at(shape.name);
      const std::vector<float>& before = problem_.weights.at(shape.name);
      const std::vector<double> start(before.begin(), before.end());
      const double least = kVanishingStep * double(problem_.optimizer.learning_rate) *
                           std::sqrt(double(start.size()));
      take_worse(error, distance(actual, expected) / std::max(distance(expected, start), least),
                 element_of(shape, actual, expected));
    }
    keep(error);
  }

  const VerifyProblem& problem_;
  const RingSetup& setup_;
  const SequenceLayout layout_;
  const StepValues& actual_;
  const RingStep& step_;
  const StepValues& expected_;
  const Tolerances tolerances_;
  std::vector<Deviation> found_;
};

}  // namespace

Tolerances tolerances_of(Dtype dtype) { return dtype == Dtype::bf16 ? kBf16 : Tolerances{}; }

GradientDeviations gradient_deviations(const GptConfig& gpt, const Values& actual, const Values& expected) {
  const Tolerances tolerances = tolerances_of(gpt.dtype);
  double whole = 0;
  for (const auto& [name, values] : expected) whole = std::hypot(whole, norm_of(values));
  GradientDeviations worst{{"gradient", "", 0, tolerances.gradient},
                           {"gradient's direction", "", 0, tolerances.cosine}};
  for (const ParameterShape& shape : parameter_shapes(gpt)) {
    const std::vector<double>&is = actual.at(shape.name), &should = expected.at(shape.name);
    const double norm = norm_of(should);
    take_worse(worst.error, distance(is, should) / std::max(norm, kVanishing * whole),
               element_of(shape, is, should));
    if (norm < kVanishing * whole) continue;
    double product = 0;
    for (size_t i = 0; i < should.size(); ++i) product += is[i] * should[i];
    take_worse(worst.direction, 1 - product / (norm * norm_of(is)), shape.name);
  }
  return worst;
}

std::vector<Deviation> deviations(const VerifyProblem& problem, const RingSetup& setup,
                                  const RingStep& actual, const StepValues& expected) {
  return Comparison(problem, setup, actual, expected).run();
}

std::vector<Deviation> sampled_deviations(const RingStep& actual) {
  std::vector<Deviation> found = actual.samples;
  found.push_back(none_of("weights of ranks", actual.strays));
  return found;
}

}  // namespace ringlet
