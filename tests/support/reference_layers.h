#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace ringlet::test {

/// Row-major and in double, zero to begin with. The layers below are the plainest loops that define
/// them; each backward returns the gradient of its input and adds to that of its weight.
struct Matrix {
  int64_t rows = 0, columns = 0;
  std::vector<double> values;

  Matrix() = default;
  Matrix(int64_t row_count, int64_t column_count)
      : rows(row_count), columns(column_count), values(size_t(row_count * column_count)) {}
  double& at(int64_t row, int64_t column) { return values[size_t(row * columns + column)]; }
  double at(int64_t row, int64_t column) const { return values[size_t(row * columns + column)]; }
};

void add(const Matrix& from, Matrix& to);
Matrix times(const Matrix& a, const Matrix& b);
Matrix transposed(const Matrix& x);
Matrix columns_of(const Matrix& x, int64_t first, int64_t count);
void add_to_columns(const Matrix& part, int64_t first, Matrix& x);

/// y = x W^T; weight: [out, in].
Matrix linear(const Matrix& x, const std::vector<double>& weight);
Matrix linear_backward(const Matrix& x, const std::vector<double>& weight, const Matrix& dy,
                       std::vector<double>& d_weight);

Matrix rms_norm(const Matrix& x, const std::vector<double>& weight, double epsilon);
Matrix rms_norm_backward(const Matrix& x, const std::vector<double>& weight, double epsilon,
                         const Matrix& dy, std::vector<double>& d_weight);

/// gate_up: [rows, 2 * width], gate then up.
Matrix swiglu(const Matrix& gate_up);
Matrix swiglu_backward(const Matrix& gate_up, const Matrix& dy);

/// Turns row t by the angles of position t (direction 1), or back (-1).
void rotate(Matrix& x, double base, int direction);

/// One head: softmax of q k^T / sqrt(head_dim) over the visible keys, [T, T]. A row that sees
/// nothing is zero, its lse -infinity. lse: [T].
Matrix attention_weights(const Matrix& q, const Matrix& k,
                         const std::vector<int64_t>& first_visible, double* lse);
/// The gradient of the scaled scores, from that of the weights.
Matrix softmax_backward(const Matrix& weights, const Matrix& d_weights);

}  // namespace ringlet::test
