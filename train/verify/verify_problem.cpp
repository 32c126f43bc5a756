#include "train/verify/verify_problem.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "kernels/check.h"
#include "kernels/random.h"
#include "train/evaluation.h"

namespace ringlet {
namespace {

/// Starts of documents in `count` tokens: of one token, of a few, of many; none at a round number on purpose.
std::vector<int64_t> document_starts(int64_t count, const CounterRandom& random) {
  std::vector<int64_t> starts{0};
  const std::array<int64_t, 4> longest{1, 5, 40, 90};
  for (uint64_t i = 0;; ++i) {
    const int64_t next = starts.back() + 1 + int64_t(random.bits(i) % uint64_t(longest[i % 4]));
    if (next >= count) return starts;
    starts.push_back(next);
  }
}

VerifyWindow make_window(const GptConfig& gpt, int64_t length, int64_t padding, bool documents,
                         const CounterRandom& random) {
  CHECK(gpt.vocabulary >= 2 && padding < length, "vocabulary ", gpt.vocabulary, ", padding ", padding);
  VerifyWindow result;
  Window& window = result.window;
  window.token_count = length - padding;
  window.document_starts = documents ? document_starts(window.token_count, random)
                                     : std::vector<int64_t>{0};
  const auto end_of_document = int32_t(gpt.vocabulary - 1);
  const auto begins_at = [&](int64_t position) {
    return position == window.token_count ||
           std::ranges::binary_search(window.document_starts, position);
  };
  for (int64_t i = 0; i < window.token_count; ++i) {
    const uint64_t text_ids = uint64_t(gpt.vocabulary - 1);
    result.tokens.push_back(int32_t(random.bits(uint64_t(1000 + i)) % text_ids));
  }
  for (int64_t i = 0; i < window.token_count; ++i) {
    result.labels.push_back(begins_at(i + 1) ? end_of_document : result.tokens[size_t(i + 1)]);
  }
  result.tokens.resize(size_t(length), 0);
  result.labels.resize(size_t(length), -1);
  if (padding > 0) window.document_starts.push_back(window.token_count);
  return result;
}

ReferenceInput reference_input(const VerifyProblem& problem, const VerifyWindow& window) {
  ReferenceInput input{problem.gpt,   widened(problem.weights),
                       window.tokens, window.labels,
                       {},            1 / double(problem.scored_tokens())};
  // Anew, not through Mask: the ring asks that.
  int64_t document_start = 0;
  for (int64_t i = 0; i < problem.length(); ++i) {
    if (problem.rule == MaskRule::document &&
        std::ranges::find(window.window.document_starts, i) != window.window.document_starts.end()) {
      document_start = i;
    }
    const int64_t windowed = problem.sliding_window > 0 ? i - problem.sliding_window + 1 : 0;
    input.first_visible.push_back(std::max(document_start, windowed));
  }
  return input;
}

}  // namespace

std::map<std::string, std::vector<float>> random_parameters(const GptConfig& config,
                                                            uint64_t seed) {
  std::map<std::string, std::vector<float>> parameters;
  for (const ParameterShape& shape : parameter_shapes(config)) {
    const CounterRandom random(seed, hash_name(shape.name));
    const bool matrix = shape.shape.size() == 2;
    const double mean = matrix ? 0 : 1;
    const double deviation = matrix ? 1 / std::sqrt(double(shape.shape[1])) : 0.2;
    std::vector<float>& values = parameters[shape.name];
    for (int64_t i = 0; i < shape.size(); ++i) {
      const auto value = float(mean + deviation * random.normal(uint64_t(i)));
      // So that what is compared starts from the same weights.
      values.push_back(config.dtype == Dtype::bf16 ? to_float(to_bf16(value)) : value);
    }
  }
  return parameters;
}

Values widened(const std::map<std::string, std::vector<float>>& parameters) {
  Values wide;
  for (const auto& [name, values] : parameters) wide[name].assign(values.begin(), values.end());
  return wide;
}

int64_t VerifyProblem::scored_tokens() const {
  int64_t count = 0;
  for (const VerifyWindow& window : windows) {
    count += std::ranges::count_if(window.labels, [](int32_t label) { return label >= 0; });
  }
  return count;
}

Mask VerifyProblem::mask(const VerifyWindow& window) const {
  return mask_of(window.window, rule, sliding_window);
}

const char* name_of(VerifyMask mask) {
  constexpr std::array kNames{"causal", "documents", "window", "documents + window",
                                  "packed", "packed + window"};
  return kNames.at(size_t(mask));
}

bool has_documents(VerifyMask mask) {
  return mask != VerifyMask::causal && mask != VerifyMask::window;
}

bool has_window(VerifyMask mask) {
  return mask == VerifyMask::window || mask == VerifyMask::documents_and_window ||
         mask == VerifyMask::packed_and_window;
}

MaskRule rule_of(VerifyMask mask) {
  const bool packed = mask == VerifyMask::packed || mask == VerifyMask::packed_and_window;
  return packed ? MaskRule::causal : MaskRule::document;
}

VerifyProblem make_problem(const GptConfig& gpt, int64_t length, int64_t window_count,
                           VerifyMask mask, int64_t sliding_window, uint64_t seed) {
  CHECK(length >= 1 && window_count >= 1, "length ", length, ", windows ", window_count);
  VerifyProblem problem;
  problem.gpt = gpt;
  problem.weights = random_parameters(gpt, seed);
  problem.rule = rule_of(mask);
  problem.sliding_window = has_window(mask) ? sliding_window : 0;
  for (int64_t i = 0; i < window_count; ++i) {
    const CounterRandom random(seed, hash_name("window " + std::to_string(i)));
    const bool padded = has_documents(mask) && i + 1 == window_count;
    const int64_t padding = padded ? std::min<int64_t>(length - 1, length / 16 + 2) : 0;
    problem.windows.push_back(make_window(gpt, length, padding, has_documents(mask), random));
  }
  problem.optimizer = {.learning_rate = 0.02f,
                       .beta1 = 0.9f,
                       .beta2 = 0.95f,
                       .epsilon = 0,
                       .weight_decay = 0.1f,
                       .gradient_scale = 1,
                       .step = 1};
  // The norm of such a model's gradient is above 1, and not its own square; the elements of the clipped gradient
  // are about as large as epsilon.
  problem.clip_norm = 0.3;
  problem.optimizer.epsilon = float(problem.clip_norm / std::sqrt(double(parameter_count(gpt))));
  return problem;
}

StepValues reference_step(const VerifyProblem& problem) {
  StepValues step;
  for (const VerifyWindow& window : problem.windows) {
    ReferenceResult result = reference_gpt(reference_input(problem, window));
    step.train_loss += result.loss;
    step.windows.push_back({result.losses, result.losses, std::move(result.layers),
                            std::move(result.d_embedding_output)});
    for (const auto& [name, values] : result.gradients) {
      std::vector<double>& sum = step.gradients[name];
      sum.resize(values.size());
      for (size_t i = 0; i < values.size(); ++i) sum[i] += values[i];
    }
  }
  step.eval_loss = step.train_loss;
  ReferenceOptimizer optimizer{widened(problem.weights), {}, {}};
  step.gradient_norm = reference_adamw(problem.gpt, problem.optimizer, problem.clip_norm,
                                       step.gradients, optimizer);
  step.next_weights = std::move(optimizer.weights);
  return step;
}

}  // namespace ringlet
