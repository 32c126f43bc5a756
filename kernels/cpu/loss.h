#pragma once

#include "kernels/backend.h"

/// Cross entropy, as in Backend. Throws Error on a label outside [-1, vocabulary).
namespace ringlet::cpu {

void cross_entropy(const Tensor& logits, const Tensor& labels, CrossEntropy mode,
                   float gradient_scale, const Tensor& losses);

}  // namespace ringlet::cpu
