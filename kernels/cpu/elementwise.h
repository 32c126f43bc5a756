#pragma once

#include "kernels/tensor.h"

/// Operations of Backend (contracts there) that move or add elements.
namespace ringlet::cpu {

void fill(float value, const Tensor& to);
void copy(const Tensor& from, const Tensor& to);
void add(const Tensor& from, const Tensor& to);
void copy_rows(const Tensor& from, int64_t first_row, const Tensor& to);

}  // namespace ringlet::cpu
