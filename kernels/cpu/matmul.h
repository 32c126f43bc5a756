#pragma once

#include <string>

#include "kernels/backend.h"

/// Matrix products, as in Backend, through OpenBLAS on the calling thread.
namespace ringlet::cpu {

/// Throws Error when a size or a stride does not fit OpenBLAS's 32-bit integers.
void matmul(const Tensor& a, Transpose transpose_a, const Tensor& b, Transpose transpose_b,
            Write write, const Tensor& out);

/// The kind of processor that OpenBLAS computes for, in its own words: "SkylakeX", "Haswell", ...
std::string matmul_core();

/// One line when OpenBLAS computes for an older processor than this one is, at a fraction of its
/// speed; else empty.
std::string matmul_warning();

}  // namespace ringlet::cpu
