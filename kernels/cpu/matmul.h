#pragma once

#include <span>

#include "kernels/backend.h"
#include "kernels/cpu/thread_team.h"

namespace ringlet::cpu {

/// What each thread of a matrix product packs its right operand into: kMatmulDepth steps of the sum for 2048
/// columns, or more steps for fewer columns.
inline constexpr int64_t kMatmulDepth = 256;
inline constexpr int64_t kMatmulPanelFloats = kMatmulDepth * 2048;

/// The matrix product of Backend, on a team of threads. `panels`: kMatmulPanelFloats of scratch for each of
/// its threads, aligned to 64 bytes. Each element of the result is summed in the order of k, in blocks of
/// kMatmulDepth that are added up one by one: its bits depend on its row of op(a) and its column of
/// op(b) alone, not on m, n, or the number of threads. Source: Goto and van de Geijn, Anatomy of
/// High-Performance Matrix Multiplication, ACM TOMS 34(3), 2008.
void matmul(ThreadTeam& team, std::span<float> panels, const Tensor& a, Transpose transpose_a,
            const Tensor& b, Transpose transpose_b, Write write, const Tensor& out);

}  // namespace ringlet::cpu
