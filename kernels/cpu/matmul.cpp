#include "kernels/cpu/matmul.h"

#include <cblas.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <limits>
#include <string_view>

#include "kernels/cpu/elementwise.h"
#include "kernels/op_shapes.h"

namespace ringlet::cpu {
namespace {

/// OpenBLAS 0.3.21 does not know recent processors and falls back to kernels of 2004, five times
/// slower. It reads its environment in a constructor of its own, so that this one has to run
/// before: hence the priority, the static library, and the place in the object file that needs it.
__attribute__((constructor(101))) void choose_openblas_core() {
  // Operations use no threads of their own, and ranks are threads: a pool would only be in the way.
  setenv("OPENBLAS_NUM_THREADS", "1", 1);
#ifdef __x86_64__
  const char* const word = std::getenv("RINGLET_ISA");
  const std::string_view isa = word != nullptr ? word : "";
  __builtin_cpu_init();
  const char* core = nullptr;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) core = "Haswell";
  if (__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") && isa != "avx2") {
    core = "SkylakeX";
  }
  if (isa == "portable") core = "Prescott";
  if (core != nullptr) setenv("OPENBLAS_CORETYPE", core, 0);
#endif
}

blasint blas_size(int64_t value) {
  CHECK(value <= std::numeric_limits<blasint>::max(), "matmul: ", value,
        " is too large for a matrix product");
  return static_cast<blasint>(value);
}

/// OpenBLAS wants a stride of at least one row, also where a single row has none.
blasint leading_dimension(const Tensor& matrix) {
  return blas_size(std::max({matrix.row_stride, matrix.shape[1], int64_t{1}}));
}

}  // namespace

void matmul(const Tensor& a, Transpose transpose_a, const Tensor& b, Transpose transpose_b,
            Write write, const Tensor& out) {
  const auto [m, n, k] = shapes::matmul(a, transpose_a, b, transpose_b, out);
  if (m == 0 || n == 0) return;
  if (k == 0) {
    for (int64_t row = 0; row < m && write == Write::set; ++row) fill(0, out.slice(row, 1));
    return;
  }
  const auto order = [](Transpose transpose) {
    return transpose == Transpose::yes ? CblasTrans : CblasNoTrans;
  };
  cblas_sgemm(CblasRowMajor, order(transpose_a), order(transpose_b), blas_size(m), blas_size(n),
              blas_size(k), 1.0f, a.row<float>(0), leading_dimension(a), b.row<float>(0),
              leading_dimension(b), write == Write::add ? 1.0f : 0.0f, out.row<float>(0),
              leading_dimension(out));
}

std::string matmul_core() { return openblas_get_corename(); }

std::string matmul_warning() {
#ifdef __x86_64__
  constexpr std::array<std::string_view, 5> kCores = {"SkylakeX", "Cooperlake", "Sapphirerapids",
                                                      "Haswell", "Zen"};
  const std::string core = matmul_core();
  if (__builtin_cpu_supports("avx2") && std::ranges::find(kCores, core) == kCores.end()) {
    return "matrix products run at a fraction of this processor's speed: OpenBLAS computes for " +
           core + "; set OPENBLAS_CORETYPE=Haswell or SkylakeX";
  }
#endif
  return {};
}

}  // namespace ringlet::cpu
