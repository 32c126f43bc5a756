#include "tests/support/reference_gpt.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "kernels/check.h"
#include "kernels/random.h"
#include "tests/support/reference_layers.h"

namespace ringlet::test {
namespace {

constexpr const char* kQueryNorm = "attention.q_norm.weight";
constexpr const char* kKeyNorm = "attention.k_norm.weight";

/// What the forward pass of a block leaves for its backward pass.
struct BlockTape {
  Matrix x, attention_in, qkv, attended, middle, mlp_in, gate_up, activated;
  std::vector<Matrix> q, k, v;  // per query head or KV head, normed and rotated
  std::vector<Matrix> weights;  // per query head
};

class Reference {
 public:
  explicit Reference(const ReferenceInput& input) : in_(input), heads_(input.config.heads) {
    for (const ParameterShape& shape : parameter_shapes(in_.config)) {
      CHECK(int64_t(parameter(shape.name).size()) == shape.size(), "size of ", shape.name);
      result_.gradients[shape.name].assign(size_t(shape.size()), 0);
    }
    CHECK(in_.labels.size() == in_.tokens.size() && in_.first_visible.size() == in_.tokens.size(),
          "labels and first_visible must have one value a token");
  }

  ReferenceResult run() {
    forward();
    backward();
    return std::move(result_);
  }

  double forward() {
    Matrix x(int64_t(in_.tokens.size()), in_.config.width);
    const std::vector<double>& table = parameter("embedding.weight");
    for (int64_t row = 0; row < x.rows; ++row) {
      for (int64_t i = 0; i < x.columns; ++i) {
        x.at(row, i) = table[size_t(in_.tokens[size_t(row)] * x.columns + i)];
      }
    }
    tapes_.resize(size_t(in_.config.layers));
    for (int64_t layer = 0; layer < in_.config.layers; ++layer)
      x = block_forward(layer, std::move(x));
    last_ = std::move(x);
    final_ = rms_norm(last_, parameter("final_norm.weight"), epsilon());
    loss_forward(linear(final_, parameter(head_name())));
    return result_.loss;
  }

 private:
  const std::vector<double>& parameter(const std::string& name) const {
    return in_.parameters.at(name);
  }
  std::vector<double>& gradient(const std::string& name) { return result_.gradients.at(name); }
  double epsilon() const { return double(in_.config.norm_epsilon); }
  std::string head_name() const {
    return in_.config.tied_head ? "embedding.weight" : "head.weight";
  }

  /// Leaves the gradient of the logits behind.
  void loss_forward(Matrix logits) {
    for (int64_t row = 0; row < logits.rows; ++row) {
      const int32_t label = in_.labels[size_t(row)];
      double maximum = logits.at(row, 0), sum = 0;
      for (int64_t i = 0; i < logits.columns; ++i) maximum = std::max(maximum, logits.at(row, i));
      for (int64_t i = 0; i < logits.columns; ++i) sum += std::exp(logits.at(row, i) - maximum);
      const double lse = maximum + std::log(sum);
      const double loss = label < 0 ? 0 : lse - logits.at(row, label);
      result_.losses.push_back(loss);
      result_.loss += loss * in_.loss_scale;
      for (int64_t i = 0; i < logits.columns; ++i) {
        const double softmax = std::exp(logits.at(row, i) - lse);
        logits.at(row, i) = label < 0 ? 0 : (softmax - double(i == label)) * in_.loss_scale;
      }
    }
    d_logits_ = std::move(logits);
  }

  Matrix block_forward(int64_t layer, Matrix x) {
    const std::string block = "blocks." + std::to_string(layer) + ".";
    BlockTape& tape = tapes_[size_t(layer)];
    tape.x = std::move(x);
    tape.attention_in = rms_norm(tape.x, parameter(block + "attention_norm.weight"), epsilon());
    tape.qkv = linear(tape.attention_in, parameter(block + "attention.qkv.weight"));
    attention_forward(block, tape);
    tape.middle = linear(tape.attended, parameter(block + "attention.output.weight"));
    add(tape.x, tape.middle);
    tape.mlp_in = rms_norm(tape.middle, parameter(block + "mlp_norm.weight"), epsilon());
    tape.gate_up = linear(tape.mlp_in, parameter(block + "mlp.gate_up.weight"));
    tape.activated = swiglu(tape.gate_up);
    Matrix y = linear(tape.activated, parameter(block + "mlp.down.weight"));
    add(tape.middle, y);
    return y;
  }

  Matrix block_backward(int64_t layer, const Matrix& dy) {
    const std::string block = "blocks." + std::to_string(layer) + ".";
    const BlockTape& tape = tapes_[size_t(layer)];
    const Matrix d_gate_up = swiglu_backward(
        tape.gate_up, linear_gradient(block + "mlp.down.weight", tape.activated, dy));
    Matrix d_middle =
        norm_gradient(block + "mlp_norm.weight", tape.middle,
                      linear_gradient(block + "mlp.gate_up.weight", tape.mlp_in, d_gate_up));
    add(dy, d_middle);
    const Matrix d_qkv = attention_backward(
        block, tape, linear_gradient(block + "attention.output.weight", tape.attended, d_middle));
    Matrix dx =
        norm_gradient(block + "attention_norm.weight", tape.x,
                      linear_gradient(block + "attention.qkv.weight", tape.attention_in, d_qkv));
    add(d_middle, dx);
    return dx;
  }

  Matrix linear_gradient(const std::string& name, const Matrix& x, const Matrix& dy) {
    return linear_backward(x, parameter(name), dy, gradient(name));
  }
  Matrix norm_gradient(const std::string& name, const Matrix& x, const Matrix& dy) {
    return rms_norm_backward(x, parameter(name), epsilon(), dy, gradient(name));
  }

  /// Column of head `index` in a fused projection: query heads, key heads, value heads.
  int64_t column_of(int64_t index) const { return index * heads_.head_dim; }

  Matrix positioned(const Matrix& raw, const std::string& norm) const {
    Matrix x = in_.config.qk_norm ? rms_norm(raw, parameter(norm), epsilon()) : raw;
    rotate(x, in_.config.rope_base, 1);
    return x;
  }

  void attention_forward(const std::string& block, BlockTape& tape) {
    const int64_t length = tape.x.rows, dim = heads_.head_dim;
    const int64_t first_key = heads_.heads, first_value = first_key + heads_.kv_heads;
    const auto raw = [&](int64_t index) { return columns_of(tape.qkv, column_of(index), dim); };
    for (int64_t h = 0; h < heads_.heads; ++h) {
      tape.q.push_back(positioned(raw(h), block + kQueryNorm));
    }
    for (int64_t h = 0; h < heads_.kv_heads; ++h) {
      tape.k.push_back(positioned(raw(first_key + h), block + kKeyNorm));
      tape.v.push_back(raw(first_value + h));
    }
    tape.attended = Matrix(length, heads_.q_width());
    std::vector<double> lse(size_t(heads_.heads * length));
    for (int64_t h = 0; h < heads_.heads; ++h) {
      const size_t kv = size_t(h / (heads_.heads / heads_.kv_heads));
      tape.weights.push_back(attention_weights(tape.q[size_t(h)], tape.k[kv], in_.first_visible,
                                               lse.data() + h * length));
      add_to_columns(times(tape.weights.back(), tape.v[kv]), column_of(h), tape.attended);
    }
    result_.attention_outputs.push_back(tape.attended.values);
    result_.lse.push_back(std::move(lse));
  }

  Matrix attention_backward(const std::string& block, const BlockTape& tape,
                            const Matrix& d_attended) {
    const int64_t dim = heads_.head_dim;
    const int64_t first_key = heads_.heads, first_value = first_key + heads_.kv_heads;
    std::vector<Matrix> d_heads(size_t(first_value + heads_.kv_heads), Matrix(tape.qkv.rows, dim));
    for (int64_t h = 0; h < heads_.heads; ++h) {
      const int64_t kv = h / (heads_.heads / heads_.kv_heads);
      const Matrix& weights = tape.weights[size_t(h)];
      const Matrix d_output = columns_of(d_attended, column_of(h), dim);
      Matrix d_scores = softmax_backward(weights, times(d_output, transposed(tape.v[size_t(kv)])));
      for (double& d : d_scores.values) d /= std::sqrt(double(dim));
      add(times(d_scores, tape.k[size_t(kv)]), d_heads[size_t(h)]);
      add(times(transposed(d_scores), tape.q[size_t(h)]), d_heads[size_t(first_key + kv)]);
      add(times(transposed(weights), d_output), d_heads[size_t(first_value + kv)]);
    }
    Matrix d_qkv(tape.qkv.rows, tape.qkv.columns);
    for (int64_t index = 0; index < int64_t(d_heads.size()); ++index) {
      Matrix& d_head = d_heads[size_t(index)];
      const std::string norm = block + (index < first_key ? kQueryNorm : kKeyNorm);
      if (index < first_value) rotate(d_head, in_.config.rope_base, -1);
      if (index < first_value && in_.config.qk_norm) {
        d_head = norm_gradient(norm, columns_of(tape.qkv, column_of(index), dim), d_head);
      }
      add_to_columns(d_head, column_of(index), d_qkv);
    }
    return d_qkv;
  }

  void backward() {
    Matrix dx =
        norm_gradient("final_norm.weight", last_, linear_gradient(head_name(), final_, d_logits_));
    for (int64_t layer = in_.config.layers; layer-- > 0;) dx = block_backward(layer, dx);
    for (int64_t row = 0; row < dx.rows; ++row) {
      for (int64_t i = 0; i < dx.columns; ++i) {
        gradient("embedding.weight")[size_t(in_.tokens[size_t(row)] * dx.columns + i)] +=
            dx.at(row, i);
      }
    }
    result_.d_embedding_output = std::move(dx.values);
  }

  const ReferenceInput& in_;
  const HeadShape heads_;
  std::vector<BlockTape> tapes_;
  Matrix last_, final_, d_logits_;
  ReferenceResult result_;
};

}  // namespace

ReferenceResult reference_gpt(const ReferenceInput& input) { return Reference(input).run(); }

double reference_loss(const ReferenceInput& input) { return Reference(input).forward(); }

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
      values.push_back(float(mean + deviation * random.normal(uint64_t(i))));
    }
  }
  return parameters;
}

Values widened(const std::map<std::string, std::vector<float>>& parameters) {
  Values wide;
  for (const auto& [name, values] : parameters) wide[name].assign(values.begin(), values.end());
  return wide;
}

double reference_adamw(const GptConfig& config, const AdamW& settings, double clip,
                       const Values& gradients, ReferenceOptimizer& optimizer) {
  double squares = 0;
  for (const auto& [name, values] : gradients) {
    squares = std::inner_product(values.begin(), values.end(), values.begin(), squares);
  }
  const double norm = std::sqrt(squares), scale = norm > clip ? clip / norm : 1;
  const double beta1 = settings.beta1, beta2 = settings.beta2, rate = settings.learning_rate;
  for (const ParameterShape& shape : parameter_shapes(config)) {
    std::vector<double>& weights = optimizer.weights.at(shape.name);
    std::vector<double>& first = optimizer.first_moment[shape.name];
    std::vector<double>& second = optimizer.second_moment[shape.name];
    first.resize(weights.size());
    second.resize(weights.size());
    const double decay = shape.shape.size() == 2 ? double(settings.weight_decay) : 0;
    for (size_t i = 0; i < weights.size(); ++i) {
      const double g = gradients.at(shape.name)[i] * scale;
      first[i] = beta1 * first[i] + (1 - beta1) * g;
      second[i] = beta2 * second[i] + (1 - beta2) * g * g;
      const double mean = first[i] / (1 - std::pow(beta1, double(settings.step)));
      const double square = second[i] / (1 - std::pow(beta2, double(settings.step)));
      weights[i] -=
          rate * (mean / (std::sqrt(square) + double(settings.epsilon)) + decay * weights[i]);
    }
  }
  return norm;
}

}  // namespace ringlet::test
