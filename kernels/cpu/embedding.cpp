#include "kernels/cpu/embedding.h"

#include "kernels/cpu/elementwise.h"

namespace ringlet::cpu {
namespace {

/// The row of the table that stands for the token of a row.
Tensor table_row(const Tensor& tokens, int64_t row, const Tensor& table) {
  const int32_t token = *tokens.row<int32_t>(row);
  CHECK(token >= 0 && token < table.rows(), "token ", token,
        " in a vocabulary of ", table.rows());
  return table.slice(token, 1);
}

}  // namespace

void embedding_forward(const Tensor& tokens, const Tensor& table, const Tensor& y) {
  for (int64_t row = 0; row < tokens.rows(); ++row) {
    copy(table_row(tokens, row, table), y.slice(row, 1));
  }
}

void embedding_backward(const Tensor& tokens, const Tensor& dy, const Tensor& d_table) {
  for (int64_t row = 0; row < tokens.rows(); ++row) {
    add(dy.slice(row, 1), table_row(tokens, row, d_table));
  }
}

}  // namespace ringlet::cpu
