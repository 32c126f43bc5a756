#pragma once

#include "kernels/tensor.h"

/// Embedding, as in Backend. Throws Error on a token that is not in the table.
namespace ringlet::cpu {

void embedding_forward(const Tensor& tokens, const Tensor& table, const Tensor& y);
void embedding_backward(const Tensor& tokens, const Tensor& dy, const Tensor& d_table);

}  // namespace ringlet::cpu
