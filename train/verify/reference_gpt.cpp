#include "train/verify/reference_gpt.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "kernels/check.h"

namespace ringlet {
namespace {

/// Row-major and in double, zero to begin with.
struct Matrix {
  int64_t rows = 0, columns = 0;
  std::vector<double> values;

  Matrix() = default;
  Matrix(int64_t row_count, int64_t column_count)
      : rows(row_count), columns(column_count), values(size_t(row_count * column_count)) {}
  double& at(int64_t row, int64_t column) { return values[size_t(row * columns + column)]; }
  double at(int64_t row, int64_t column) const { return values[size_t(row * columns + column)]; }
};

void add(const Matrix& from, Matrix& to) {
  for (size_t i = 0; i < from.values.size(); ++i) to.values[i] += from.values[i];
}

// Each backward returns dx and adds to the gradient of its weight.

/// y = x W^T; weight: [out, in].
Matrix linear(const Matrix& x, const std::vector<double>& weight) {
  Matrix y(x.rows, int64_t(weight.size()) / x.columns);
  for (int64_t row = 0; row < y.rows; ++row) {
    for (int64_t out = 0; out < y.columns; ++out) {
      double sum = 0;
      for (int64_t in = 0; in < x.columns; ++in) {
        sum += x.at(row, in) * weight[size_t(out * x.columns + in)];
      }
      y.at(row, out) = sum;
    }
  }
  return y;
}

Matrix linear_backward(const Matrix& x, const std::vector<double>& weight, const Matrix& dy,
                       std::vector<double>& d_weight) {
  Matrix dx(x.rows, x.columns);
  for (int64_t row = 0; row < dy.rows; ++row) {
    for (int64_t out = 0; out < dy.columns; ++out) {
      for (int64_t in = 0; in < x.columns; ++in) {
        dx.at(row, in) += dy.at(row, out) * weight[size_t(out * x.columns + in)];
        d_weight[size_t(out * x.columns + in)] += dy.at(row, out) * x.at(row, in);
      }
    }
  }
  return dx;
}

double inverse_rms(const Matrix& x, int64_t row, double epsilon) {
  double squares = 0;
  for (int64_t i = 0; i < x.columns; ++i) squares += x.at(row, i) * x.at(row, i);
  return 1 / std::sqrt(squares / double(x.columns) + epsilon);
}

Matrix rms_norm(const Matrix& x, const std::vector<double>& weight, double epsilon) {
  Matrix y(x.rows, x.columns);
  for (int64_t row = 0; row < x.rows; ++row) {
    const double inverse = inverse_rms(x, row, epsilon);
    for (int64_t i = 0; i < x.columns; ++i) {
      y.at(row, i) = x.at(row, i) * inverse * weight[size_t(i)];
    }
  }
  return y;
}

Matrix rms_norm_backward(const Matrix& x, const std::vector<double>& weight, double epsilon,
                         const Matrix& dy, std::vector<double>& d_weight) {
  Matrix dx(x.rows, x.columns);
  for (int64_t row = 0; row < x.rows; ++row) {
    const double inverse = inverse_rms(x, row, epsilon);
    double along = 0;  // the part of the gradient that only changes the length of x
    for (int64_t i = 0; i < x.columns; ++i) {
      d_weight[size_t(i)] += dy.at(row, i) * x.at(row, i) * inverse;
      along += dy.at(row, i) * weight[size_t(i)] * x.at(row, i);
    }
    along *= inverse * inverse / double(x.columns);
    for (int64_t i = 0; i < x.columns; ++i) {
      dx.at(row, i) = inverse * (dy.at(row, i) * weight[size_t(i)] - x.at(row, i) * along);
    }
  }
  return dx;
}

/// Turns row t by the angles of position t (direction 1), or back (-1).
void rotate(Matrix& x, double base, int direction) {
  const int64_t half = x.columns / 2;
  for (int64_t position = 0; position < x.rows; ++position) {
    for (int64_t i = 0; i < half; ++i) {
      const double angle =
          double(position) * std::pow(base, -2.0 * double(i) / double(x.columns)) * direction;
      const double first = x.at(position, i), second = x.at(position, i + half);
      x.at(position, i) = first * std::cos(angle) - second * std::sin(angle);
      x.at(position, i + half) = first * std::sin(angle) + second * std::cos(angle);
    }
  }
}

Matrix columns_of(const Matrix& x, int64_t first, int64_t count) {
  Matrix part(x.rows, count);
  for (int64_t row = 0; row < x.rows; ++row) {
    for (int64_t i = 0; i < count; ++i) part.at(row, i) = x.at(row, first + i);
  }
  return part;
}

void add_to_columns(const Matrix& part, int64_t first, Matrix& x) {
  for (int64_t row = 0; row < x.rows; ++row) {
    for (int64_t i = 0; i < part.columns; ++i) x.at(row, first + i) += part.at(row, i);
  }
}

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

/// gate_up: [rows, 2 * width], gate then up.
Matrix swiglu(const Matrix& gate_up) {
  Matrix y(gate_up.rows, gate_up.columns / 2);
  for (int64_t row = 0; row < y.rows; ++row) {
    for (int64_t i = 0; i < y.columns; ++i) {
      const double gate = gate_up.at(row, i);
      y.at(row, i) = gate * sigmoid(gate) * gate_up.at(row, y.columns + i);
    }
  }
  return y;
}

Matrix swiglu_backward(const Matrix& gate_up, const Matrix& dy) {
  Matrix dx(gate_up.rows, gate_up.columns);
  for (int64_t row = 0; row < dy.rows; ++row) {
    for (int64_t i = 0; i < dy.columns; ++i) {
      const double gate = gate_up.at(row, i), up = gate_up.at(row, dy.columns + i);
      const double s = sigmoid(gate);
      dx.at(row, i) = dy.at(row, i) * up * s * (1 + gate * (1 - s));
      dx.at(row, dy.columns + i) = dy.at(row, i) * gate * s;
    }
  }
  return dx;
}

/// One head: softmax of q k^T / sqrt(head_dim) over the visible keys, [T, T]. lse: [T].
Matrix attention_weights(const Matrix& q, const Matrix& k,
                         const std::vector<int64_t>& first_visible, double* lse) {
  Matrix weights(q.rows, k.rows);
  const double scale = 1 / std::sqrt(double(q.columns));
  for (int64_t i = 0; i < q.rows; ++i) {
    double maximum = -std::numeric_limits<double>::infinity(), sum = 0;
    for (int64_t j = first_visible[size_t(i)]; j <= i; ++j) {
      double score = 0;
      for (int64_t c = 0; c < q.columns; ++c) score += q.at(i, c) * k.at(j, c);
      weights.at(i, j) = score * scale;
      maximum = std::max(maximum, weights.at(i, j));
    }
    for (int64_t j = first_visible[size_t(i)]; j <= i; ++j)
      sum += std::exp(weights.at(i, j) - maximum);
    lse[i] = maximum + std::log(sum);
    for (int64_t j = first_visible[size_t(i)]; j <= i; ++j) {
      weights.at(i, j) = std::exp(weights.at(i, j) - lse[i]);
    }
  }
  return weights;
}

Matrix times(const Matrix& a, const Matrix& b) {
  Matrix y(a.rows, b.columns);
  for (int64_t i = 0; i < a.rows; ++i) {
    for (int64_t j = 0; j < a.columns; ++j) {
      for (int64_t c = 0; c < b.columns; ++c) y.at(i, c) += a.at(i, j) * b.at(j, c);
    }
  }
  return y;
}

Matrix transposed(const Matrix& x) {
  Matrix y(x.columns, x.rows);
  for (int64_t i = 0; i < x.rows; ++i) {
    for (int64_t j = 0; j < x.columns; ++j) y.at(j, i) = x.at(i, j);
  }
  return y;
}

/// The gradient of the scaled scores, from that of the weights.
Matrix softmax_backward(const Matrix& weights, const Matrix& d_weights) {
  Matrix d_scores(weights.rows, weights.columns);
  for (int64_t i = 0; i < weights.rows; ++i) {
    double mean = 0;
    for (int64_t j = 0; j < weights.columns; ++j) mean += weights.at(i, j) * d_weights.at(i, j);
    for (int64_t j = 0; j < weights.columns; ++j) {
      d_scores.at(i, j) = weights.at(i, j) * (d_weights.at(i, j) - mean);
    }
  }
  return d_scores;
}


constexpr const char* kQueryNorm = "attention.q_norm.weight";
constexpr const char* kKeyNorm = "attention.k_norm.weight";

/// What the forward pass of a block leaves for its backward pass.
struct BlockTape {
  Matrix x, attention_in, qkv, attended, middle, mlp_in, gate_up, activated;
  std::vector<Matrix> q, k, v;  // per query head or KV head, normed and rotated
  std::vector<Matrix> weights;  // per query head, [T, T]
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
    result_.layers.resize(tapes_.size());
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
    attention_forward(layer, block, tape);
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
        layer, block, tape, linear_gradient(block + "attention.output.weight", tape.attended, d_middle));
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

  void attention_forward(int64_t layer, const std::string& block, BlockTape& tape) {
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
    Matrix lse(heads_.heads, length);
    for (int64_t h = 0; h < heads_.heads; ++h) {
      const size_t kv = size_t(h / (heads_.heads / heads_.kv_heads));
      tape.weights.push_back(attention_weights(tape.q[size_t(h)], tape.k[kv], in_.first_visible,
                                               &lse.at(h, 0)));
      add_to_columns(times(tape.weights.back(), tape.v[kv]), column_of(h), tape.attended);
    }
    LayerValues& values = result_.layers[size_t(layer)];
    values.output = tape.attended.values;
    values.lse = transposed(lse).values;
    for (std::vector<double>* gradient : {&values.dq, &values.dk, &values.dv}) {
      const int64_t heads = gradient == &values.dq ? heads_.heads : heads_.kv_heads;
      gradient->assign(size_t(length * heads * dim), 0);
    }
  }

  /// Rows of one head into [T, heads * head_dim].
  void put_head(const Matrix& head, int64_t index, std::vector<double>& whole) const {
    const int64_t width = int64_t(whole.size()) / head.rows;
    for (int64_t row = 0; row < head.rows; ++row) {
      for (int64_t i = 0; i < head.columns; ++i) {
        whole[size_t(row * width + column_of(index) + i)] = head.at(row, i);
      }
    }
  }

  Matrix attention_backward(int64_t layer, const std::string& block, const BlockTape& tape,
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
    LayerValues& values = result_.layers[size_t(layer)];
    for (int64_t index = 0; index < int64_t(d_heads.size()); ++index) {
      Matrix& d_head = d_heads[size_t(index)];
      std::vector<double>& kept =
          index < first_key ? values.dq : index < first_value ? values.dk : values.dv;
      const int64_t first = index < first_key ? 0 : index < first_value ? first_key : first_value;
      put_head(d_head, index - first, kept);
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

}  // namespace ringlet
