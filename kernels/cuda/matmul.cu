#include <algorithm>
#include <source_location>

#include "kernels/cuda/cuda_raii.h"
#include "kernels/cuda/matmul.h"

namespace ringlet::cuda {
namespace {

void check_cublas(cublasStatus_t status, std::source_location at = std::source_location::current()) {
  if (status != CUBLAS_STATUS_SUCCESS) {
    fail("cuBLASLt call succeeded", at.file_name(), int(at.line()), cublasLtGetStatusString(status));
  }
}

cudaDataType_t data_type(Dtype dtype) { return dtype == Dtype::bf16 ? CUDA_R_16BF : CUDA_R_32F; }

/// Elements between rows; of a single row the tensor may say anything.
int64_t leading_dimension(const Tensor& matrix) {
  return std::max<int64_t>({matrix.rows() > 1 ? matrix.row_stride : matrix.shape[1], matrix.shape[1], 1});
}

/// The largest power of two, up to 256, that divides the address.
int64_t alignment_of(const Tensor& matrix) {
  const auto address = reinterpret_cast<uintptr_t>(matrix.data);
  return int64_t(address == 0 ? 256 : std::min<uintptr_t>(address & -address, 256));
}

struct DestroyLayout {
  void operator()(cublasLtMatrixLayout_t layout) const { cublasLtMatrixLayoutDestroy(layout); }
};
using Layout = std::unique_ptr<cublasLtMatrixLayoutOpaque_t, DestroyLayout>;

/// A row-major matrix, as cuBLASLt sees it: column-major and transposed.
Layout make_layout(const Tensor& matrix) {
  cublasLtMatrixLayout_t layout = nullptr;
  check_cublas(cublasLtMatrixLayoutCreate(&layout, data_type(matrix.dtype), uint64_t(matrix.shape[1]),
                                          uint64_t(matrix.shape[0]), leading_dimension(matrix)));
  return Layout(layout);
}

struct DestroyProduct {
  void operator()(cublasLtMatmulDesc_t product) const { cublasLtMatmulDescDestroy(product); }
};
using Product = std::unique_ptr<cublasLtMatmulDescOpaque_t, DestroyProduct>;

Product make_product(Transpose first, Transpose second) {
  cublasLtMatmulDesc_t product = nullptr;
  // 32F without "fast": f32 operands are not cut to TF32.
  check_cublas(cublasLtMatmulDescCreate(&product, CUBLAS_COMPUTE_32F, CUDA_R_32F));
  Product owner(product);
  const auto set = [&](cublasLtMatmulDescAttributes_t which, Transpose transpose) {
    const cublasOperation_t operation = transpose == Transpose::yes ? CUBLAS_OP_T : CUBLAS_OP_N;
    check_cublas(cublasLtMatmulDescSetAttribute(product, which, &operation, sizeof(operation)));
  };
  set(CUBLASLT_MATMUL_DESC_TRANSA, first);
  set(CUBLASLT_MATMUL_DESC_TRANSB, second);
  return owner;
}

struct DestroyPreference {
  void operator()(cublasLtMatmulPreference_t preference) const {
    cublasLtMatmulPreferenceDestroy(preference);
  }
};
using Preference = std::unique_ptr<cublasLtMatmulPreferenceOpaque_t, DestroyPreference>;

template <class T>
void set(const Preference& preference, cublasLtMatmulPreferenceAttributes_t which, T value) {
  check_cublas(cublasLtMatmulPreferenceSetAttribute(preference.get(), which, &value, sizeof(value)));
}

Preference make_preference(size_t workspace_bytes, const Tensor& first, const Tensor& second,
                           const Tensor& out) {
  cublasLtMatmulPreference_t created = nullptr;
  check_cublas(cublasLtMatmulPreferenceCreate(&created));
  Preference preference(created);
  set(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, uint64_t(workspace_bytes));
  // Parts of a sum over k meet in the workspace, in f32 and in a fixed order; never by atomics.
  set(preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
      uint32_t(CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE));
  set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, uint32_t(alignment_of(first)));
  set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, uint32_t(alignment_of(second)));
  set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, uint32_t(alignment_of(out)));
  set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, uint32_t(alignment_of(out)));
  return preference;
}

}  // namespace

// The row-major product out = a * b is the column-major one out' = b' * a': b is cuBLASLt's first operand.
struct Matmul::Plan {
  Product product;
  Layout first, second, out;
  cublasLtMatmulAlgo_t algorithm{};
  bool has_algorithm = false;  // cuBLASLt may have none for the shape
};

Matmul::Matmul(std::span<std::byte> workspace) : workspace_(workspace) {
  check_cublas(cublasLtCreate(&handle_));
}

Matmul::~Matmul() { cublasLtDestroy(handle_); }

std::unique_ptr<Matmul::Plan> Matmul::make_plan(const shapes::MatmulSizes& sizes, const Tensor& a,
                                                Transpose transpose_a, const Tensor& b, Transpose transpose_b,
                                                const Tensor& out) const {
  auto plan = std::make_unique<Plan>();
  if (sizes.k == 0) return plan;
  plan->product = make_product(transpose_b, transpose_a);
  plan->first = make_layout(b);
  plan->second = make_layout(a);
  plan->out = make_layout(out);
  const Preference preference = make_preference(workspace_.size(), b, a, out);
  cublasLtMatmulHeuristicResult_t found{};
  int count = 0;
  const cublasStatus_t status =
      cublasLtMatmulAlgoGetHeuristic(handle_, plan->product.get(), plan->first.get(), plan->second.get(),
                                     plan->out.get(), plan->out.get(), preference.get(), 1, &found, &count);
  if (status == CUBLAS_STATUS_SUCCESS && count == 1 && found.state == CUBLAS_STATUS_SUCCESS) {
    plan->algorithm = found.algo;
    plan->has_algorithm = true;
  }
  return plan;
}

void Matmul::run(cudaStream_t stream, const shapes::MatmulSizes& sizes, const Tensor& a,
                 Transpose transpose_a, const Tensor& b, Transpose transpose_b, Write write,
                 const Tensor& out) {
  if (sizes.m == 0 || sizes.n == 0 || (sizes.k == 0 && write == Write::add)) return;
  const Key key{sizes.m,
                sizes.n,
                sizes.k,
                int64_t(transpose_a),
                int64_t(transpose_b),
                int64_t(a.dtype),
                int64_t(out.dtype),
                leading_dimension(a),
                leading_dimension(b),
                leading_dimension(out),
                alignment_of(a),
                alignment_of(b),
                alignment_of(out)};
  std::unique_ptr<Plan>& plan = plans_[key];
  if (plan == nullptr) plan = make_plan(sizes, a, transpose_a, b, transpose_b, out);
  if (plan->has_algorithm) {
    const float alpha = 1, beta = write == Write::add ? 1 : 0;
    const cublasStatus_t status =
        cublasLtMatmul(handle_, plan->product.get(), &alpha, b.data, plan->first.get(), a.data,
                       plan->second.get(), &beta, out.data, plan->out.get(), out.data, plan->out.get(),
                       &plan->algorithm, workspace_.data(), workspace_.size(), stream);
    // An algorithm may still refuse what the heuristic proposed it for; nothing has been launched then.
    if (status != CUBLAS_STATUS_NOT_SUPPORTED && status != CUBLAS_STATUS_INVALID_VALUE)
      return check_cublas(status);
    plan->has_algorithm = false;
  }
  plain_matmul(stream, sizes, a, transpose_a, b, transpose_b, write, out);
}

}  // namespace ringlet::cuda
