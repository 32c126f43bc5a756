#include "model/gpt_config.h"

#include <fmt/format.h>

#include <cmath>
#include <limits>

#include "kernels/check.h"
#include "kernels/op_shapes.h"

namespace ringlet {
namespace {

void require(bool possible, const std::string& cause, const std::string& advice) {
  if (!possible) throw UsageError(cause, advice);
}

// The limits keep every product of sizes, in bytes too, inside int64.
void require_range(const char* key, int64_t value, int64_t largest) {
  require(value >= 1 && value <= largest, fmt::format("model.{} = {} cannot be", key, value),
          fmt::format("choose a value from 1 to {}", largest));
}

/// Is sum_i cos(m * frequencies[i]) >= 0 for all integers m in [begin, end)? frequencies descend.
/// Exact: a range is passed only when a lower bound of the sum over it is not negative. Around its
/// middle, the terms that turn slowly are bounded together by value, slope and curvature; the
/// others by -1.
bool never_negative(std::span<const double> frequencies, int64_t begin, int64_t end) {
  const int64_t middle = begin + (end - begin) / 2;
  const double reach = double(middle - begin);
  double bound = 0, slope = 0, curvature = 0;
  for (size_t i = frequencies.size(); i-- > 0;) {
    const double frequency = frequencies[i];
    if (frequency * reach > 1.3) {  // any limit is right; this one needs the fewest ranges
      bound -= double(i + 1);
      break;
    }
    bound += std::cos(frequency * double(middle));
    slope += frequency * std::sin(frequency * double(middle));
    curvature += frequency * frequency;
  }
  if (bound - std::abs(slope) * reach - curvature * reach * reach / 2 >= 0) return true;
  if (end - begin == 1) return false;
  // The far half first: that is where a base that is too small fails.
  return never_negative(frequencies, middle, end) && never_negative(frequencies, begin, middle);
}

}  // namespace

void GptConfig::validate() const {
  require_range("vocabulary", vocabulary, std::numeric_limits<int32_t>::max());
  require_range("layers", layers, 4096);
  require_range("width", width, 1 << 20);
  require_range("heads", heads.heads, 4096);
  require_range("kv_heads", heads.kv_heads, 4096);
  require_range("head_dim", heads.head_dim, shapes::kMaxHeadDim);
  require_range("mlp_width", mlp_width, 1 << 20);
  require(heads.heads % heads.kv_heads == 0,
          fmt::format("model.kv_heads = {} does not divide model.heads = {}", heads.kv_heads,
                      heads.heads),
          "choose a number of KV heads that divides the number of heads");
  require(heads.head_dim % 8 == 0,
          fmt::format("model.head_dim = {} is not a multiple of 8", heads.head_dim),
          fmt::format("choose {}", (heads.head_dim + 7) / 8 * 8));
  require(norm_epsilon > 0 && norm_epsilon < 1,
          fmt::format("model.norm_epsilon = {} cannot be", norm_epsilon),
          "choose a small positive value, such as 1e-6");
  require(rope_base > 1 && std::isfinite(rope_base),
          fmt::format("model.rope_base = {} cannot be", rope_base),
          "choose a value above 1, such as 10000, or \"auto\"");
}

int64_t ParameterShape::size() const {
  int64_t product = 1;
  for (const int64_t extent : shape) product *= extent;
  return product;
}

std::vector<ParameterShape> parameter_shapes(const GptConfig& config) {
  const HeadShape& heads = config.heads;
  const int64_t width = config.width;
  std::vector<ParameterShape> all{{"embedding.weight", {config.vocabulary, width}}};
  for (int64_t layer = 0; layer < config.layers; ++layer) {
    const std::string block = fmt::format("blocks.{}.", layer);
    all.push_back({block + "attention_norm.weight", {width}});
    all.push_back({block + "attention.qkv.weight", {heads.qkv_width(), width}});
    if (config.qk_norm) {
      all.push_back({block + "attention.q_norm.weight", {heads.head_dim}});
      all.push_back({block + "attention.k_norm.weight", {heads.head_dim}});
    }
    all.push_back({block + "attention.output.weight", {width, heads.q_width()}});
    all.push_back({block + "mlp_norm.weight", {width}});
    all.push_back({block + "mlp.gate_up.weight", {2 * config.mlp_width, width}});
    all.push_back({block + "mlp.down.weight", {width, config.mlp_width}});
  }
  all.push_back({"final_norm.weight", {width}});
  if (!config.tied_head) all.push_back({"head.weight", {config.vocabulary, width}});
  return all;
}

int64_t parameter_count(const GptConfig& config) {
  int64_t count = 0;
  for (const ParameterShape& parameter : parameter_shapes(config)) count += parameter.size();
  return count;
}

double auto_rope_base(int64_t head_dim, int64_t context) {
  CHECK(head_dim >= 4 && head_dim % 2 == 0 && context >= 1, "head_dim ", head_dim, ", context ",
        context);
  std::vector<double> frequencies(size_t(head_dim / 2));
  // Ends: with a large enough base only the first term still turns, and the others outweigh it.
  for (int step = 0;; ++step) {
    const double base = std::pow(10.0, 4 + 0.02 * step);
    for (size_t i = 0; i < frequencies.size(); ++i) {
      frequencies[i] = std::pow(base, -2.0 * double(i) / double(head_dim));
    }
    if (never_negative(frequencies, 0, context)) return base;
  }
}

}  // namespace ringlet
