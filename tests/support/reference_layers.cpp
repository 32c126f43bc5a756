#include "tests/support/reference_layers.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace ringlet::test {

void add(const Matrix& from, Matrix& to) {
  for (size_t i = 0; i < from.values.size(); ++i) to.values[i] += from.values[i];
}

// ---- layers: each backward returns dx and adds to the gradient of its weight
// ---------------------

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

static double inverse_rms(const Matrix& x, int64_t row, double epsilon) {
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

static double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

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

/// softmax of q k^T / sqrt(head_dim) over the visible keys, [T, T]; a row that sees nothing is
/// zero.
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

}  // namespace ringlet::test
