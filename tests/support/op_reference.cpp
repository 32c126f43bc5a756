#include "tests/support/op_reference.h"

#include <algorithm>
#include <cmath>

namespace ringlet::test::reference {

Doubles matmul(const Doubles& a, Transpose transpose_a, const Doubles& b, Transpose transpose_b,
               int64_t m, int64_t n, int64_t k) {
  Doubles out(m * n);
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      for (int64_t l = 0; l < k; ++l) {
        out[i * n + j] += (transpose_a == Transpose::yes ? a[l * m + i] : a[i * k + l]) *
                          (transpose_b == Transpose::yes ? b[j * k + l] : b[l * n + j]);
      }
    }
  }
  return out;
}

namespace {

double inverse_rms(const double* x, size_t width, double epsilon) {
  double sum = 0;
  for (size_t i = 0; i < width; ++i) sum += x[i] * x[i];
  return 1 / std::sqrt(sum / double(width) + epsilon);
}

/// Where a row of head `head` of the fused projection stands: heads of q, then keys and values
/// piece by piece.
double& split_element(Split& split, const SplitInput& input, const Piece& piece, int64_t row,
                      int64_t head, int64_t i) {
  const HeadShape& shape = input.shape;
  const int64_t rows = int64_t(input.rotary.size()) / shape.head_dim;
  if (head < shape.heads) {
    return split.q[(head * rows + piece.first_row + row) * shape.head_dim + i];
  }
  const int64_t before = 2 * shape.kv_heads * piece.first_row;
  const int64_t within = (head - shape.heads) * piece.row_count + row;
  return split.kv[(before + within) * shape.head_dim + i];
}

/// Calls body(piece, row of the piece, head) for every row of every head of q, k and v.
template <class Body>
void for_each_head_row(const SplitInput& input, const Body& body) {
  for (const Piece& piece : input.pieces) {
    for (int64_t row = 0; row < piece.row_count; ++row) {
      for (int64_t head = 0; head < input.shape.heads + 2 * input.shape.kv_heads; ++head) {
        body(piece, row, head);
      }
    }
  }
}

/// A row of a head turned by its angles (direction 1) or back (-1).
Doubles rotated(const Doubles& x, const double* rotary, double direction) {
  const size_t half = x.size() / 2;
  Doubles y(x.size());
  for (size_t i = 0; i < half; ++i) {
    const double cosine = rotary[i], sine = direction * rotary[half + i];
    y[i] = x[i] * cosine - x[half + i] * sine;
    y[half + i] = x[half + i] * cosine + x[i] * sine;
  }
  return y;
}

Doubles head_row(const Doubles& qkv, const HeadShape& shape, int64_t row, int64_t head) {
  const auto first = qkv.begin() + row * shape.qkv_width() + head * shape.head_dim;
  return {first, first + shape.head_dim};
}

}  // namespace

Doubles rms_norm(const Doubles& x, const Doubles& weight, double epsilon) {
  const size_t width = weight.size();
  Doubles y(x.size());
  for (size_t first = 0; first < x.size(); first += width) {
    const double scale = inverse_rms(&x[first], width, epsilon);
    for (size_t i = 0; i < width; ++i) y[first + i] = x[first + i] * scale * weight[i];
  }
  return y;
}

NormGradient rms_norm_backward(const Doubles& x, const Doubles& weight, double epsilon,
                               const Doubles& dy) {
  const size_t width = weight.size();
  NormGradient gradient{Doubles(x.size()), Doubles(width)};
  for (size_t first = 0; first < x.size(); first += width) {
    const double scale = inverse_rms(&x[first], width, epsilon);
    double mean = 0;
    for (size_t i = 0; i < width; ++i) {
      mean += x[first + i] * weight[i] * dy[first + i] / double(width);
      gradient.d_weight[i] += dy[first + i] * x[first + i] * scale;
    }
    for (size_t i = 0; i < width; ++i) {
      gradient.dx[first + i] = scale * weight[i] * dy[first + i] -
                               x[first + i] * scale * scale * scale * mean;
    }
  }
  return gradient;
}

Doubles rotary_table(std::span<const Piece> pieces, double base, int64_t head_dim) {
  Doubles table;
  for (const Piece& piece : pieces) {
    for (int64_t row = 0; row < piece.row_count; ++row) {
      for (int64_t i = 0; i < head_dim; ++i) {
        const long double exponent = -2.0L * (long double)(i % (head_dim / 2)) / head_dim;
        const long double angle = piece.position(row) * std::pow((long double)(base), exponent);
        table.push_back(double(i < head_dim / 2 ? std::cos(angle) : std::sin(angle)));
      }
    }
  }
  return table;
}

Split qkv_split(const SplitInput& input, const Doubles& qkv) {
  const HeadShape& shape = input.shape;
  const size_t rows = qkv.size() / shape.qkv_width();
  Split split{Doubles(rows * shape.q_width()), Doubles(rows * 2 * shape.kv_heads * shape.head_dim)};
  for_each_head_row(input, [&](const Piece& piece, int64_t row, int64_t head) {
    Doubles x = head_row(qkv, shape, piece.first_row + row, head);
    if (head < shape.heads + shape.kv_heads) {
      const Doubles& norm = head < shape.heads ? input.q_norm : input.k_norm;
      if (!norm.empty()) x = rms_norm(x, norm, input.epsilon);
      x = rotated(x, &input.rotary[(piece.first_row + row) * shape.head_dim], 1);
    }
    for (int64_t i = 0; i < shape.head_dim; ++i) {
      split_element(split, input, piece, row, head, i) = x[i];
    }
  });
  return split;
}

SplitGradient qkv_split_backward(const SplitInput& input, const Doubles& qkv,
                                 const Split& gradient) {
  const HeadShape& shape = input.shape;
  SplitGradient result{Doubles(qkv.size()), Doubles(input.q_norm.size()),
                       Doubles(input.k_norm.size())};
  Split from = gradient;
  for_each_head_row(input, [&](const Piece& piece, int64_t row, int64_t head) {
    const int64_t all_row = piece.first_row + row;
    Doubles dx(shape.head_dim);
    for (int64_t i = 0; i < shape.head_dim; ++i) {
      dx[i] = split_element(from, input, piece, row, head, i);
    }
    if (head < shape.heads + shape.kv_heads) {
      dx = rotated(dx, &input.rotary[all_row * shape.head_dim], -1);
      const Doubles& norm = head < shape.heads ? input.q_norm : input.k_norm;
      if (!norm.empty()) {
        const NormGradient step = rms_norm_backward(head_row(qkv, shape, all_row, head), norm,
                                                    input.epsilon, dx);
        Doubles& d_norm = head < shape.heads ? result.d_q_norm : result.d_k_norm;
        for (size_t i = 0; i < d_norm.size(); ++i) d_norm[i] += step.d_weight[i];
        dx = step.dx;
      }
    }
    std::ranges::copy(dx, result.d_qkv.begin() + all_row * shape.qkv_width() +
                              head * shape.head_dim);
  });
  return result;
}

Doubles swiglu(const Doubles& gate_up, int64_t width) {
  Doubles y(gate_up.size() / 2);
  for (size_t i = 0; i < y.size(); ++i) {
    const size_t gate = i / width * 2 * width + i % width;
    y[i] = gate_up[gate] / (1 + std::exp(-gate_up[gate])) * gate_up[gate + width];
  }
  return y;
}

Doubles swiglu_backward(const Doubles& gate_up, const Doubles& dy, int64_t width) {
  Doubles gradient(gate_up.size());
  for (size_t i = 0; i < dy.size(); ++i) {
    const size_t gate = i / width * 2 * width + i % width;
    const double x = gate_up[gate], sigmoid = 1 / (1 + std::exp(-x));
    gradient[gate] = dy[i] * gate_up[gate + width] * (sigmoid + x * sigmoid * (1 - sigmoid));
    gradient[gate + width] = dy[i] * x * sigmoid;
  }
  return gradient;
}

Doubles cross_entropy(const Doubles& logits, const std::vector<int32_t>& labels) {
  Doubles losses(labels.size());
  const size_t vocabulary = labels.empty() ? 0 : logits.size() / labels.size();
  for (size_t row = 0; row < labels.size(); ++row) {
    if (labels[row] < 0) continue;
    const auto first = logits.begin() + row * vocabulary;
    const double maximum = *std::max_element(first, first + vocabulary);
    double sum = 0;
    for (size_t i = 0; i < vocabulary; ++i) sum += std::exp(first[i] - maximum);
    losses[row] = maximum + std::log(sum) - first[labels[row]];
  }
  return losses;
}

Doubles cross_entropy_backward(const Doubles& logits, const std::vector<int32_t>& labels) {
  Doubles gradient(logits.size());
  const size_t vocabulary = labels.empty() ? 0 : logits.size() / labels.size();
  const Doubles losses = cross_entropy(logits, labels);
  for (size_t row = 0; row < labels.size(); ++row) {
    if (labels[row] < 0) continue;
    const double* const x = &logits[row * vocabulary];
    const double lse = losses[row] + x[labels[row]];
    for (size_t i = 0; i < vocabulary; ++i) {
      gradient[row * vocabulary + i] = std::exp(x[i] - lse) - (int64_t(i) == labels[row] ? 1 : 0);
    }
  }
  return gradient;
}

AdamWState adamw(const AdamW& settings, const Doubles& gradient, AdamWState state) {
  const double beta1 = settings.beta1, beta2 = settings.beta2;
  for (size_t i = 0; i < gradient.size(); ++i) {
    const double g = gradient[i] * settings.gradient_scale;
    double& m = state.first_moment[i];
    double& v = state.second_moment[i];
    m = beta1 * m + (1 - beta1) * g;
    v = beta2 * v + (1 - beta2) * g * g;
    const double mean = m / (1 - std::pow(beta1, double(settings.step)));
    const double square = v / (1 - std::pow(beta2, double(settings.step)));
    state.weights[i] -= settings.learning_rate * (mean / (std::sqrt(square) + settings.epsilon) +
                                                  settings.weight_decay * state.weights[i]);
  }
  return state;
}

}  // namespace ringlet::test::reference
